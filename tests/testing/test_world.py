"""A world: what a test does in it is what happens outside."""

from __future__ import annotations

import sys

from pydantic import Field

from microflow.events import Event
from microflow.handlers import on
from microflow.testing import Worlds


class OrderPlaced(Event, key="order_id"):
    order_id: str = Field(alias="orderId")


class OrderAccepted(Event, key="order_id"):
    order_id: str = Field(alias="orderId")


@on("OrderPlaced")
async def accept_order(order: OrderPlaced) -> OrderAccepted:
    return OrderAccepted(order_id=order.order_id)


async def test_an_event_from_outside_stands_in_the_log_as_one_that_a_service_emits(world: Worlds) -> None:
    shop = await world(sys.modules[__name__])

    await shop.emit(OrderPlaced(order_id="o-1"))
    await shop.settle()

    assert [event.data for event in shop.events()] == [{"orderId": "o-1"}, {"orderId": "o-1"}]
