"""A service is killed in the middle of an order: what it had committed counts, what it had not is done again."""

import asyncio

import pytest

from examples.order_saga.tests.conftest import Start
from examples.order_saga.tests.saga import audit

SERVICES = ("orders", "payments", "inventory", "shipping", "customers")
ITEMS = ({"teapot": 1}, {"antique clock": 1}, {"unicorn": 1}, {"grand piano": 1})


@pytest.mark.parametrize("service", SERVICES)
async def test_at_whatever_moment_a_service_is_killed_every_order_ends_once(start: Start, service: str) -> None:
    saga = await start(lost_answers=0.3)
    for moment in range(40):
        await saga.place(f"o-{moment}", items=ITEMS[moment % len(ITEMS)])
        for _ in range(3 * moment):
            await asyncio.sleep(0)
        await saga.world.crash(service)
        if moment % 2:  # an event that was alone in hand in three deaths in a row would be taken for their cause
            await saga.come_to_rest()

    assert await audit(saga) == {"completed": 20, "cancelled": 20}


async def test_all_services_killed_at_once_go_on_where_they_were(start: Start) -> None:
    saga = await start()
    for number in range(20):
        await saga.place(f"o-{number}", items={"antique clock": 1})
    await saga.world.settle()
    for service in SERVICES:
        await saga.world.crash(service)
    await saga.come_to_rest()

    assert await audit(saga) == {"completed": 20}
