"""payments: takes the money for accepted orders, and gives it back for what is not delivered.

Money moves at the card company, which is the outside world: a call to it can be slow, can fail, and can succeed
although its answer is lost. So a handler that calls it holds no transaction open, sends an idempotency key, and is
tried again until there is an answer. What must be decided once is decided in a transaction, by another handler.
"""

import asyncio
import os
import sqlite3
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any, Protocol

from microflow import Connection, Context, Event, Retry, Service, on

# ── what this service reads ───────────────────────────────────────────────────────────────────────────────────────


class OrderAccepted(Event, topic="orders"):
    order_id: str
    items: dict[str, int]
    total: Decimal
    card: str


class OrderNotDelivered(Event):
    """What an order that is withdrawn, out of stock or refused by the carrier means to this service."""

    order_id: str
    reason: str


# ── what it emits ─────────────────────────────────────────────────────────────────────────────────────────────────


class PaymentEvent(Event, key="order_id", topic="payments"):
    order_id: str


class PaymentReceived(PaymentEvent):
    items: dict[str, int]  # what was paid for


class PaymentDeclined(PaymentEvent):
    reason: str


class RefundApproved(PaymentEvent):
    payment_id: str
    amount: Decimal
    reason: str


class PaymentRefunded(PaymentEvent):
    amount: Decimal
    reason: str


# ── the handlers ──────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Charge:
    """The card company's answer: the payment it took, or the reason why it took none."""

    payment_id: str
    declined: str | None = None


class Cards(Protocol):
    """The card company. Asked again with the same idempotency key, it gives the same answer and moves no money."""

    async def charge(self, card: str, amount: Decimal, *, idempotency_key: str) -> Charge: ...

    async def refund(self, payment_id: str, amount: Decimal, *, idempotency_key: str) -> None: ...


# Money is not given up on: a dead letter comes after hours, and even then what follows for the order waits (`halt`).
UNTIL_ANSWERED = Retry(attempts=100, first_delay=timedelta(milliseconds=200), max_delay=timedelta(minutes=5))


@on("OrderAccepted", retry=UNTIL_ANSWERED, halt=True)
async def take_payment(order: OrderAccepted, context: Context, cards: Cards) -> PaymentReceived | PaymentDeclined:
    """An accepted order is charged: once, however often the card company must be asked."""
    charge = await cards.charge(order.card, order.total, idempotency_key=context.idempotency_key())
    if charge.declined:
        return PaymentDeclined(order_id=order.order_id, reason=charge.declined)
    context.write(
        "insert into payments (payment_id, order_id, amount, state) values ($1, $2, $3, 'kept')",
        charge.payment_id,
        order.order_id,
        order.total,
    )
    return PaymentReceived(order_id=order.order_id, items=order.items)


@on("OrderWithdrawn", topic="orders")
@on("ItemsOutOfStock", topic="inventory")
@on("ShipmentRefused", topic="shipping")
async def approve_refund(order: OrderNotDelivered, connection: Connection) -> RefundApproved | None:
    """What is not delivered is paid back, once: the first who asks finds the payment kept, a second finds it owed.

    A withdrawal shares its topic with the acceptance, so it is read when the payment is taken or declined for good.
    """
    payment = await connection.fetchrow(
        "select payment_id, amount from payments where order_id = $1 and state = 'kept'", order.order_id
    )
    if payment is None:
        return None  # the card was declined, or the money is on its way back already
    sql = "update payments set state = 'owed' where payment_id = $1 and state = 'kept'"
    if not await connection.execute(sql, payment["payment_id"]):
        return None  # somebody else approved it between the two statements
    return RefundApproved(
        order_id=order.order_id,
        payment_id=payment["payment_id"],
        amount=payment["amount"],
        reason=order.reason,
    )


@on(RefundApproved, retry=UNTIL_ANSWERED, halt=True)
async def refund_payment(refund: RefundApproved, context: Context, cards: Cards) -> PaymentRefunded:
    """An approved refund is made, and the others learn of it when the customer has the money."""
    await cards.refund(refund.payment_id, refund.amount, idempotency_key=context.idempotency_key())
    context.write("update payments set state = 'refunded' where payment_id = $1", refund.payment_id)
    return PaymentRefunded(order_id=refund.order_id, amount=refund.amount, reason=refund.reason)


# ── the card company, simulated ───────────────────────────────────────────────────────────────────────────────────


class CardCompany:
    """A card company with a ledger of its own, in a file: what it was told survives a crash of those who told it.

    Cards that end in `-declined` are declined. Each call takes `latency`. Of a `lost` share of the calls the answer is
    lost when the money has moved; asked again with the same key, the company answers.
    """

    def __init__(self, ledger: str | Path, *, latency: timedelta = timedelta(0), lost: float = 0.0) -> None:
        self._latency = latency
        self._lost = lost
        # A file of its own that a kill cannot harm; safe from a power cut it need not be.
        self.ledger = sqlite3.connect(ledger, isolation_level=None)
        self.ledger.executescript(
            """
            pragma synchronous = off;
            create table if not exists ledger (
                idempotency_key text primary key, movement text not null, payment_id text not null, amount text not null
            );
            """
        )

    async def charge(self, card: str, amount: Decimal, *, idempotency_key: str) -> Charge:
        payment_id = f"payment-{idempotency_key[:12]}"
        if card.endswith("-declined"):
            await self._record("decline", payment_id, amount, idempotency_key)
            return Charge(payment_id, declined="the card was declined")
        await self._record("charge", payment_id, amount, idempotency_key)
        return Charge(payment_id)

    async def refund(self, payment_id: str, amount: Decimal, *, idempotency_key: str) -> None:
        await self._record("refund", payment_id, amount, idempotency_key)

    async def _record(self, movement: str, payment_id: str, amount: Decimal, idempotency_key: str) -> None:
        await asyncio.sleep(self._latency.total_seconds())
        is_new = self.ledger.execute(
            "insert into ledger values (?, ?, ?, ?) on conflict do nothing",
            (idempotency_key, movement, payment_id, str(amount)),
        ).rowcount
        if is_new and int(idempotency_key[-8:], 16) < self._lost * 2**32:
            raise ConnectionError("the card company's answer was lost")

    def close(self) -> None:
        self.ledger.close()


@asynccontextmanager
async def card_company() -> AsyncIterator[Mapping[Any, Any]]:
    """What the handlers are given while the service runs. The environment says how bad the day is:

    - `ORDER_SAGA_LEDGER`: the card company's file (`.microflow/card_company.db`)
    - `ORDER_SAGA_SLOW_CARDS`: how many seconds each call takes (0.02)
    - `ORDER_SAGA_LOST_ANSWERS`: the share of calls whose answer is lost (0)
    """
    ledger = Path(os.environ.get("ORDER_SAGA_LEDGER", ".microflow/card_company.db"))
    ledger.parent.mkdir(parents=True, exist_ok=True)
    company = CardCompany(
        ledger,
        latency=timedelta(seconds=float(os.environ.get("ORDER_SAGA_SLOW_CARDS", "0.02"))),
        lost=float(os.environ.get("ORDER_SAGA_LOST_ANSWERS", "0")),
    )
    with closing(company):
        yield {Cards: company}


service = Service("payments", tables="payments.sql", lifespan=card_company)
