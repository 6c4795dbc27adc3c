"""What `mypy --strict` refuses, each line with the code of its error."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import timedelta
from typing import Any

from microflow import Connection, Context, Event, Retry, Service, on


class OrderAccepted(Event):
    order_id: str


class PaymentReceived(Event, key="order_id"):
    order_id: str


class PaymentDeclined(Event, key="order_id"):
    order_id: str


@on("OrderAccepted")
async def emits_what_it_does_not_declare(order: OrderAccepted) -> PaymentReceived:
    if order.order_id:
        return PaymentDeclined(order_id=order.order_id)  # refused: return-value
    return PaymentReceived(order_id=order.order_id)


@on("OrderAccepted")
async def emits_though_it_declares_nothing(order: OrderAccepted) -> None:
    return PaymentReceived(order_id=order.order_id)  # refused: return-value


@on("OrderAccepted")
async def emits_one_of_two(order: OrderAccepted) -> tuple[PaymentReceived, PaymentDeclined]:
    return (PaymentReceived(order_id=order.order_id),)  # refused: return-value


@on("OrderAccepted")
async def lists_a_stranger(order: OrderAccepted) -> list[PaymentReceived]:
    return [PaymentReceived(order_id=order.order_id), PaymentDeclined(order_id="")]  # refused: list-item


@on("OrderAccepted")
def yields_a_stranger(order: OrderAccepted) -> Iterator[PaymentReceived]:
    yield PaymentDeclined(order_id=order.order_id)  # refused: misc


@on("OrderAccepted")
async def emits_nothing_though_it_must(order: OrderAccepted) -> PaymentReceived:  # refused: return
    await emits_though_it_declares_nothing(order)


@on("OrderAccepted")
async def is_not_annotated(order):  # refused: no-untyped-def
    return None


@on("OrderAccepted")
async def reads_a_field_that_is_not_there(order: OrderAccepted) -> None:
    order.total.upper()  # refused: attr-defined


@on("OrderAccepted")
async def leaves_a_field_out(order: OrderAccepted) -> PaymentReceived:
    return PaymentReceived()  # refused: call-arg


@on("OrderAccepted")
async def forgets_to_await(order: OrderAccepted, connection: Connection, context: Context) -> None:
    count: int = connection.execute("delete from orders")  # refused: assignment
    context.write(count)  # refused: arg-type


@on("OrderAccepted", retries=Retry())  # refused: arg-type
async def misspells_a_keyword(order: OrderAccepted) -> None: ...


@on("OrderAccepted", retry={"TimeoutError": Retry()})  # refused: dict-item
async def maps_a_name(order: OrderAccepted) -> None: ...


@on("OrderAccepted", retry={TimeoutError: 3})  # refused: dict-item
async def maps_to_a_number(order: OrderAccepted) -> None: ...


@on("OrderAccepted", retry=3)  # refused: arg-type
async def retries_a_number(order: OrderAccepted) -> None: ...


@on("OrderAccepted", order="keys")  # refused: arg-type
async def orders_by_what_is_none(order: OrderAccepted) -> None: ...


@on("OrderAccepted", deadline=30)  # refused: arg-type
async def gives_a_number_of_something(order: OrderAccepted) -> None: ...


@on(int)  # refused: arg-type
async def handles_no_event(order: OrderAccepted) -> None: ...


async def calls_a_handler_with_something_else() -> None:
    await maps_a_name("order")  # refused: arg-type


async def no_context_manager() -> dict[Any, Any]:
    return {}


@asynccontextmanager
async def takes_an_argument(url: str) -> AsyncIterator[dict[Any, Any]]:
    yield {}


@asynccontextmanager
async def gives_no_mapping() -> AsyncIterator[int]:
    yield 5


@contextmanager
def blocking() -> Iterator[dict[Any, Any]]:
    yield {}


async def short(event: Any, context: Context) -> Any: ...


Service("a", lifespan=no_context_manager)  # refused: arg-type
Service("b", lifespan=takes_an_argument)  # refused: arg-type
Service("c", lifespan=gives_no_mapping)  # refused: arg-type
Service("d", lifespan=blocking)  # refused: arg-type
Service("e", lifespan=takes_an_argument(""))  # refused: arg-type
Service("f", table="payments.sql")  # refused: arg-type
Service("g", middleware=[short])  # refused: list-item
Service("h", start="first")  # refused: arg-type
Service("i", retry={5: Retry()})  # refused: dict-item
Retry(attemps=3)  # refused: call-arg
Retry(first_delay=1)  # refused: arg-type
Retry(3, timedelta(1))  # refused: call-arg
