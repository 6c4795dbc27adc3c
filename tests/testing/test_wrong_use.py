"""What a test gets wrong is told to it, in its own line."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import pytest

import microflow.testing
from microflow import Service, running
from microflow.errors import DefinitionError, MicroflowError, Reject
from microflow.events import Event
from microflow.handlers import on
from microflow.testing import World, Worlds
from tests.testing.shops import shop_of


class OrderPlaced(Event, key="order_id"):
    order_id: str


class OrderAccepted(Event, key="order_id"):
    order_id: str


@on("OrderPlaced")
async def accept(order: OrderPlaced) -> OrderAccepted:
    if order.order_id == "bad":
        raise Reject("nobody wants it")
    return OrderAccepted(order_id=order.order_id)


async def test_a_dead_letter_shows_its_error_and_whose_it_is(world: Worlds) -> None:
    shop = await world(shop_of(accept))
    await shop.emit(OrderPlaced(order_id="bad"))
    await shop.settle()

    [letter] = shop.dead_letters()

    assert "accept" in repr(letter)
    assert "OrderPlaced" in repr(letter)
    assert "bad" in repr(letter)
    assert "Reject: nobody wants it" in repr(letter)


async def test_a_redrive_of_what_is_no_dead_letter_is_an_error(world: Worlds) -> None:
    shop = await world(shop_of(accept))
    await shop.emit(OrderPlaced(order_id="bad"))
    await shop.settle()
    [letter] = shop.dead_letters()

    with pytest.raises(MicroflowError, match=f"no dead letter 77(.|\n)*It has: {letter.id}"):
        await shop.redrive("shop", 77)

    await shop.redrive("shop")
    await shop.redrive("shop")  # nothing is left, and nothing was named


async def test_time_does_not_go_back(world: Worlds) -> None:
    shop = await world(shop_of(accept))

    with pytest.raises(MicroflowError, match="Time cannot go back by 0:10:00"):
        await shop.advance(timedelta(minutes=-10))


async def test_the_example_of_the_package_is_true(world: Worlds) -> None:
    shop = await world(shop_of(accept))
    await shop.emit(OrderPlaced(order_id="o-1"), correlation_id="o-1")
    await shop.settle()

    assert [event.type for event in shop.events(flow="o-1")] == ["OrderPlaced", "OrderAccepted"]
    assert 'correlation_id="o-1"' in (microflow.testing.__doc__ or "")


async def test_a_failing_test_shows_its_own_lines_and_none_of_ours(world: Worlds) -> None:
    shop = await world(shop_of(accept))

    for wrong in (shop.redrive("shop", 77), shop.redrive("nobody"), shop.advance(timedelta(-1)), shop.emit(3)):  # type: ignore[arg-type] # wrong by intention
        with pytest.raises(MicroflowError) as failure:
            await wrong
        assert str(failure.traceback.filter(failure)[-1].path) == __file__


@pytest.mark.parametrize("given", ["shop", None, OrderPlaced, Service, 3])
def test_what_is_neither_a_service_nor_a_module_is_refused(given: Any) -> None:
    async def run() -> None:
        async with running(given):
            pass

    with pytest.raises(DefinitionError, match="neither a service nor a module"):
        World(given)
    with pytest.raises(DefinitionError, match="neither a service nor a module"):
        asyncio.run(run())
