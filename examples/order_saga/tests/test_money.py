"""Thousands of orders on a bad day, and the money is right to the cent."""

import asyncio
from itertools import islice
from random import Random

from examples.order_saga import placing
from examples.order_saga.tests.conftest import Start
from examples.order_saga.tests.saga import Saga, audit, mixed

SERVICES = ("orders", "payments", "inventory", "shipping", "customers")
ORDERS = 2_000


async def test_every_order_ends_once_and_the_money_taken_is_kept_or_refunded(start: Start) -> None:
    random = Random(2024)
    saga = await start(seed=2024, lost_answers=0.1)
    orders = list(islice(placing.orders(seed=2024), ORDERS))
    for first in range(0, ORDERS, 40):
        await publish(saga, orders[first : first + 40], random)
        if random.random() < 0.5:
            await saga.world.crash(random.choice(SERVICES))
    await saga.come_to_rest()

    ends = await audit(saga)
    assert ends.total() == ORDERS
    in_the_log = saga.all_ends()
    for order in orders:
        assert order.ending is None or in_the_log[order.order_id] == [order.ending]
    assert min(ends["completed"], ends["cancelled"], ends["rejected"]) > ORDERS // 20


async def publish(saga: Saga, orders: list[placing.Order], random: Random) -> None:
    """Publish what these customers do."""
    for event, flow, identifier in mixed(orders, random):
        await saga.world.emit(event, correlation_id=flow, id=identifier)
        for _ in range(random.randrange(4)):
            await asyncio.sleep(0)
