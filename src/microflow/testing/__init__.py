"""Tests of services without a server: the real consumer, relay and parking, in virtual time.

async with World(orders, payments, dependencies={Cards: FakeCards()}, seed=1) as world:
    await world.emit(OrderPlaced(order_id="o-1", total=Decimal(10)), correlation_id="o-1")
    await world.settle()
    assert [event.type for event in world.events(flow="o-1")] == ["OrderPlaced", "OrderAccepted", …]
"""

from microflow.testing.contexts import context
from microflow.testing.seen_events import SeenEvent
from microflow.testing.world import World
from microflow.testing.worlds import Worlds

__all__ = ["SeenEvent", "World", "Worlds", "context"]
