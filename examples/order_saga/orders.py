"""orders: accepts orders, and decides how each of them ends.

An order is accepted once, however often it is placed, and ends once: completed, cancelled or rejected. The customer's
wish to cancel and the news from the other services come on different topics, so they arrive in any order, perhaps at
the same instant. What decides between them is the order's row: of two handlers that want to move it, one finds it
where it must be, and the other finds it gone.

    accepted ──▶ completed | cancelled | rejected       what the other services report
       │
       └──▶ withdrawn ──▶ cancelled | rejected          the customer was quicker than the parcel
    unwanted ──▶ cancelled                              the cancellation came before the order itself
"""

from collections.abc import Sequence
from decimal import Decimal
from typing import Literal

from microflow import Connection, Event, Reject, Service, on

# ── what this service reads: its own view of other people's events ────────────────────────────────────────────────


class OrderPlaced(Event, key="order_id"):
    order_id: str
    items: dict[str, int]
    total: Decimal
    card: str


class OrderCancellationRequested(Event, key="order_id"):
    order_id: str


class PaymentDeclined(Event, topic="payments"):
    order_id: str
    reason: str


class PaymentRefunded(Event, topic="payments"):
    order_id: str
    reason: str


class ShipmentScheduled(Event, topic="shipping"):
    order_id: str


# ── what it emits: all on one topic, so that an order's acceptance, withdrawal and end are read in this order ─────


class OrderEvent(Event, key="order_id", topic="orders"):
    order_id: str


class OrderAccepted(OrderEvent):
    items: dict[str, int]
    total: Decimal
    card: str


class OrderWithdrawn(OrderEvent):
    reason: str


class OrderCancellationRefused(OrderEvent):
    reason: str


class OrderCompleted(OrderEvent):
    pass


class OrderCancelled(OrderEvent):
    reason: str


class OrderRejected(OrderEvent):
    reason: str


# ── the beginning ─────────────────────────────────────────────────────────────────────────────────────────────────

CUSTOMER_CANCELLED = "the customer cancelled"


@on(OrderPlaced)
async def accept_order(placed: OrderPlaced, connection: Connection) -> OrderAccepted | OrderCancelled | None:
    """An order is accepted when it is placed first; if its cancellation has overtaken it, it ends before it began."""
    if placed.total <= 0 or min(placed.items.values(), default=0) <= 0:
        raise Reject(f"{placed.order_id} is no order: {placed.items} for {placed.total}")
    if await begin(connection, placed.order_id, "accepted"):
        return OrderAccepted(order_id=placed.order_id, items=placed.items, total=placed.total, card=placed.card)
    if await end(connection, placed.order_id, "cancelled", out_of=["unwanted"]):
        return OrderCancelled(order_id=placed.order_id, reason=CUSTOMER_CANCELLED)
    return None  # placed twice: the first time counted


@on(OrderCancellationRequested)
async def withdraw_order(
    request: OrderCancellationRequested, connection: Connection
) -> OrderWithdrawn | OrderCancellationRefused | None:
    """A customer may cancel until the parcel is on its way, and even before we have seen the order."""
    if await begin(connection, request.order_id, "unwanted"):
        return None  # the order is still to come
    if await move(connection, request.order_id, out_of="accepted", to="withdrawn"):
        return OrderWithdrawn(order_id=request.order_id, reason=CUSTOMER_CANCELLED)
    if await state_of(connection, request.order_id) == "completed":
        return OrderCancellationRefused(order_id=request.order_id, reason="the parcel is on its way")
    return None  # withdrawn or not delivered anyway: the customer has what was asked for


# ── the three ends ────────────────────────────────────────────────────────────────────────────────────────────────


@on("ShipmentScheduled")
async def complete_order(shipment: ShipmentScheduled, connection: Connection) -> OrderCompleted | None:
    """An order is complete when its parcel is on its way, unless the customer withdrew it in the meantime."""
    if await end(connection, shipment.order_id, "completed", out_of=["accepted"]):
        return OrderCompleted(order_id=shipment.order_id)
    return None


@on("PaymentRefunded")
async def cancel_order(refund: PaymentRefunded, connection: Connection) -> OrderCancelled | None:
    """An order that was paid for and not delivered is cancelled when the customer has the money back."""
    if await end(connection, refund.order_id, "cancelled", out_of=["accepted", "withdrawn"]):
        return OrderCancelled(order_id=refund.order_id, reason=refund.reason)
    return None


@on("PaymentDeclined")
async def reject_order(payment: PaymentDeclined, connection: Connection) -> OrderRejected | None:
    """An order that cannot be paid for is rejected, and so is one that was withdrawn while its card was declined."""
    if await end(connection, payment.order_id, "rejected", out_of=["accepted", "withdrawn"]):
        return OrderRejected(order_id=payment.order_id, reason=payment.reason)
    return None


# ── the order's row: every statement finds it in the state that it expects, or changes nothing ────────────────────

Open = Literal["accepted", "withdrawn", "unwanted"]
Ending = Literal["completed", "cancelled", "rejected"]


async def begin(connection: Connection, order_id: str, state: Open) -> bool:
    sql = "insert into orders (order_id, state) values ($1, $2) on conflict (order_id) do nothing"
    return await connection.execute(sql, order_id, state) == 1


async def end(connection: Connection, order_id: str, ending: Ending, *, out_of: Sequence[Open]) -> bool:
    for state in out_of:
        if await move(connection, order_id, out_of=state, to=ending):
            await connection.execute("insert into endings (order_id, ending) values ($1, $2)", order_id, ending)
            return True
    return False


async def move(connection: Connection, order_id: str, *, out_of: Open, to: Open | Ending) -> bool:
    sql = "update orders set state = $3 where order_id = $1 and state = $2"
    return await connection.execute(sql, order_id, out_of, to) == 1


async def state_of(connection: Connection, order_id: str) -> Open | Ending | None:
    state: Open | Ending | None = await connection.fetchval("select state from orders where order_id = $1", order_id)
    return state


service = Service("orders", tables="orders.sql")
