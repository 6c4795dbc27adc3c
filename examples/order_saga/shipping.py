"""shipping: books a carrier for what is reserved, and calls the parcel back when it is released.

Reservations and releases share a topic. While the carrier does not answer, the booking is parked and a release of the
same order waits behind it: a parcel is never called back first and booked afterwards.
"""

import asyncio
import os
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Protocol

from microflow import Context, Event, Retry, Service, on

# ── what this service reads ───────────────────────────────────────────────────────────────────────────────────────


class ItemsReserved(Event, topic="inventory"):
    order_id: str
    items: dict[str, int]


class ItemsReleased(Event, topic="inventory"):
    order_id: str


# ── what it emits ─────────────────────────────────────────────────────────────────────────────────────────────────


class ShippingEvent(Event, key="order_id", topic="shipping"):
    order_id: str


class ShipmentScheduled(ShippingEvent):
    tracking: str


class ShipmentRefused(ShippingEvent):
    reason: str


# ── the handlers ──────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Booking:
    """The carrier's answer: the number to track the parcel by, or the reason why it takes no such parcel."""

    tracking: str
    refused: str | None = None


class Carrier(Protocol):
    """The carrier. Asked again with the same idempotency key, it books no second parcel."""

    async def book(self, order_id: str, items: Mapping[str, int], *, idempotency_key: str) -> Booking: ...

    async def call_back(self, order_id: str) -> None:
        """The order's parcel comes back; if there is none, nothing happens."""
        ...


# A carrier that says no is business, and an event. One that says nothing is asked again, until it answers.
UNTIL_ANSWERED = Retry(attempts=100, first_delay=timedelta(milliseconds=300), max_delay=timedelta(minutes=5))


@on("ItemsReserved", retry=UNTIL_ANSWERED, halt=True)
async def schedule_shipment(
    order: ItemsReserved, context: Context, carrier: Carrier
) -> ShipmentScheduled | ShipmentRefused:
    """Reserved items are handed to the carrier, who takes them or says why not."""
    booking = await carrier.book(order.order_id, order.items, idempotency_key=context.idempotency_key())
    if booking.refused:
        return ShipmentRefused(order_id=order.order_id, reason=booking.refused)
    context.write(
        "insert into shipments (tracking, order_id, state) values ($1, $2, 'booked')", booking.tracking, order.order_id
    )
    return ShipmentScheduled(order_id=order.order_id, tracking=booking.tracking)


@on("ItemsReleased", retry=UNTIL_ANSWERED, halt=True)
async def call_shipment_back(order: ItemsReleased, context: Context, carrier: Carrier) -> None:
    """Items that are released after all do not travel: their parcel, if the carrier has one, is called back."""
    await carrier.call_back(order.order_id)
    context.write("update shipments set state = 'called back' where order_id = $1", order.order_id)


# ── the carrier, simulated ────────────────────────────────────────────────────────────────────────────────────────


class ParcelCarrier:
    """A carrier with two weaknesses: it refuses grand pianos, and over an antique clock it hesitates.

    Each call takes `latency`; for an antique clock the first `hesitations` of them end in a TimeoutError.
    """

    def __init__(self, *, latency: timedelta = timedelta(0), hesitations: int = 2) -> None:
        self._latency = latency
        self._hesitations = hesitations
        self._asked: Counter[str] = Counter()

    async def book(self, order_id: str, items: Mapping[str, int], *, idempotency_key: str) -> Booking:
        await asyncio.sleep(self._latency.total_seconds())
        if "grand piano" in items:
            return Booking(tracking="", refused="the carrier does not take a grand piano")
        if "antique clock" in items and self._asked[idempotency_key] < self._hesitations:
            self._asked[idempotency_key] += 1
            raise TimeoutError("the carrier did not answer")
        return Booking(tracking=f"parcel-{idempotency_key[:12]}")

    async def call_back(self, order_id: str) -> None:
        await asyncio.sleep(self._latency.total_seconds())


@asynccontextmanager
async def parcel_carrier() -> AsyncIterator[Mapping[Any, Any]]:
    """What the handlers are given while the service runs.

    `ORDER_SAGA_SLOW_CARRIER` says how many seconds each call to the carrier takes (0.03).
    """
    latency = timedelta(seconds=float(os.environ.get("ORDER_SAGA_SLOW_CARRIER", "0.03")))
    yield {Carrier: ParcelCarrier(latency=latency)}


service = Service("shipping", tables="shipping.sql", lifespan=parcel_carrier)
