"""What `mypy --strict` accepts: the ways in which a service's author may write."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from decimal import Decimal
from enum import Enum
from typing import Annotated, Any, Generic, Protocol, TypeVar
from uuid import UUID

from microflow import Command, Connection, Context, Event, Reject, Retry, Service, on
from microflow.service import CallNext

T = TypeVar("T")


class Colour(Enum):
    RED = "red"


class OrderAccepted(Event):
    order_id: str
    total: Decimal


class PaymentEvent(Event, key="order_id", topic="payments"):
    order_id: str


class PaymentReceived(PaymentEvent):
    payment_id: UUID | None = None


class PaymentDeclined(PaymentEvent, external=True):
    reason: str
    type: str = "declined"
    key: str = "a field may be called so"


class RetrievePayment(Command, key=("shop", "order_id"), type="com.example.retrieve"):
    shop: int
    order_id: str
    colour: Colour = Colour.RED


class Page(Event, Generic[T], key="number"):
    number: int
    items: tuple[T, ...]


class Cards(Protocol):
    async def charge(self, amount: Decimal, *, idempotency_key: str) -> bool: ...


@on(
    "OrderAccepted",
    topic="orders",
    retry={TimeoutError: Retry(attempts=10), ValueError: Retry.never()},
    deadline=timedelta(seconds=30),
    order="handler",
    halt=True,
)
@on("OrderChanged", name="take_payment")
async def take_payment(order: OrderAccepted, context: Context, cards: Cards) -> PaymentReceived | PaymentDeclined:
    if not await cards.charge(order.total, idempotency_key=context.idempotency_key()):
        return PaymentDeclined(order_id=order.order_id, reason="declined")
    context.write("insert into payments values ($1)", order.order_id)
    return PaymentReceived(order_id=order.order_id)


@on(OrderAccepted, retry=Retry(attempts=5, first_delay=timedelta(seconds=1)))
async def record_order(order: OrderAccepted, connection: Connection) -> None:
    rows: int = await connection.execute("delete from orders where id = $1", order.order_id)
    async with connection.savepoint():
        for row in await connection.fetch("select id from orders"):
            context_id = row["id"]
            rows += bool(context_id)
    if rows > 1:
        raise Reject("two orders with one id")


@on("OrderAccepted")
def plainly(order: OrderAccepted, limit: Annotated[int, "limit"], verbose: bool = False) -> PaymentReceived | None:
    return PaymentReceived(order_id=order.order_id) if limit and verbose else None


@on("OrderAccepted")
async def several(order: OrderAccepted) -> tuple[PaymentReceived, RetrievePayment]:
    return PaymentReceived(order_id=order.order_id), RetrievePayment(shop=1, order_id=order.order_id)


@on("OrderAccepted")
async def any_number(order: OrderAccepted) -> Sequence[PaymentReceived | PaymentDeclined]:
    return [PaymentReceived(order_id=order.order_id), PaymentDeclined(order_id=order.order_id, reason="")]


@on("OrderAccepted")
def yielded(order: OrderAccepted) -> Iterator[PaymentReceived]:
    yield PaymentReceived(order_id=order.order_id)


@on("OrderAccepted")
async def awaited(order: OrderAccepted) -> AsyncIterator[PaymentReceived]:
    yield PaymentReceived(order_id=order.order_id)


async def a_unit_test_calls_a_handler_as_the_function_that_it_is(cards: Cards, context: Context) -> None:
    emitted: PaymentReceived | PaymentDeclined = await take_payment(
        OrderAccepted(order_id="1", total=Decimal(1)), context, cards
    )
    assert emitted == PaymentReceived(order_id="1")


@asynccontextmanager
async def card_company() -> AsyncIterator[Mapping[Any, Any]]:
    yield {Cards: object(), Annotated[int, "limit"]: 3}


@asynccontextmanager
async def narrower() -> AsyncIterator[dict[type, object]]:
    yield {Cards: object()}


async def timed(call_next: CallNext, event: Any, context: Context) -> Any:
    return await call_next(event, context)


service = Service(
    "payments",
    modules=["shop.handlers"],
    tables="payments.sql",
    lifespan=card_company,
    middleware=[timed],
    retry=Retry(),
    start="latest",
)
shortest = Service()
narrow = Service("narrow", lifespan=narrower)
