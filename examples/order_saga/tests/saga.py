"""The saga on a stage of its own, and the auditor who compares what its services have written down."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from decimal import Decimal
from random import Random
from typing import Any, Protocol

from examples.order_saga.payments import CardCompany
from examples.order_saga.placing import ENDS, Order, OrderCancellationRequested, OrderPlaced
from microflow import Event


class Seen(Protocol):
    """An event in the log."""

    @property
    def id(self) -> str: ...

    @property
    def type(self) -> str: ...

    @property
    def flow(self) -> str: ...


class GivenUp(Protocol):
    """A dead letter."""

    @property
    def error(self) -> str: ...


class Books(Protocol):
    """A service's own tables."""

    async def fetch(self, sql: str, *args: object) -> Sequence[Mapping[str, Any]]: ...


class Stage(Protocol):
    """Where the five services play: a `World` here, processes on real servers in the fault tests of microflow."""

    async def emit(self, event: Event, *, correlation_id: str | None = None, id: str | None = None) -> str: ...  # noqa: A002
    async def settle(self) -> None: ...
    async def advance(self, duration: timedelta) -> None: ...
    async def crash(self, service: str) -> None: ...
    def events(self, *, flow: str | None = None) -> Sequence[Seen]: ...
    def dead_letters(self, service: str | None = None) -> Sequence[GivenUp]: ...
    def connection(self, service: str) -> Books: ...


@dataclass(frozen=True)
class Saga:
    """A stage with the five services, the card company's ledger, and what was on the shelf at the beginning.

    `as_written` is what the rows of a table are ordered by to be in the order in which they were written.
    """

    world: Stage
    company: CardCompany
    shelf: Mapping[str, int]
    as_written: str = "rowid"

    async def place(
        self, order_id: str = "o-1", *, items: Mapping[str, int] | None = None, card: str = "4000-good"
    ) -> None:
        placed = OrderPlaced(order_id=order_id, items=dict(items or {"teapot": 2}), total=Decimal("49.80"), card=card)
        await self.world.emit(placed, correlation_id=order_id)

    async def cancel(self, order_id: str = "o-1") -> None:
        await self.world.emit(OrderCancellationRequested(order_id=order_id), correlation_id=order_id)

    async def come_to_rest(self) -> None:
        """Let more time pass than any retry here takes."""
        await self.world.advance(timedelta(hours=1))

    def road(self, order_id: str = "o-1") -> list[str]:
        """The types of an order's events in the order in which they came. After a crash one may be in the log again."""
        return list({event.id: event.type for event in self.world.events(flow=order_id)}.values())

    def ends(self, order_id: str = "o-1") -> list[str]:
        return [event_type for event_type in self.road(order_id) if event_type in ENDS]

    def all_ends(self) -> dict[str, list[str]]:
        """The ends of all orders."""
        ends: dict[str, dict[str, str]] = {}
        for event in self.world.events():
            if event.type in ENDS:
                ends.setdefault(event.flow, {})[event.id] = event.type
        return {order_id: list(each.values()) for order_id, each in ends.items()}

    def ledger(self, movement: str) -> list[tuple[str, Decimal]]:
        """The payments that the card company has charged, declined or refunded, as its own ledger says."""
        rows = self.company.ledger.execute("select payment_id, amount from ledger where movement = ?", (movement,))
        return [(payment_id, Decimal(amount)) for payment_id, amount in rows]

    async def letters(self, order_id: str = "o-1") -> list[str]:
        sql = f"select letter from letters where order_id = $1 order by {self.as_written}"
        return [row["letter"] for row in await self.world.connection("customers").fetch(sql, order_id)]


def mixed(orders: Sequence[Order], random: Random) -> list[tuple[Event, str, str]]:
    """What these customers publish, with flow and id: mixed with each other, out of order, and some of it twice."""
    publications: list[tuple[Event, str, str]] = [
        (publication.event, order.order_id, f"{order.order_id}/{number}")
        for order in orders
        for number, publication in enumerate(order.publications)
    ]
    publications += random.sample(publications, len(publications) // 10)
    random.shuffle(publications)
    return publications


async def audit(saga: Saga) -> Counter[str]:
    """Compare the books of all services and of the card company; return how many orders ended how.

    Nothing here trusts an index or a state machine: every row is read and counted.
    """
    assert saga.world.dead_letters() == []
    endings = await read(saga, "orders", "select order_id, ending from endings")
    once(order_id for order_id, _ in endings)
    assert {order_id for order_id, _ in endings} == {event.flow for event in saga.world.events()}
    completed = {order_id for order_id, ending in endings if ending == "completed"}
    rejected = {order_id for order_id, ending in endings if ending == "rejected"}

    await audit_money(saga, completed=completed, rejected=rejected)
    await audit_goods(saga, completed=completed)
    await audit_letters(saga, endings)
    return Counter(ending for _, ending in endings)


async def audit_money(saga: Saga, *, completed: set[str], rejected: set[str]) -> None:
    """Money taken is money kept plus money refunded: kept for completed orders, refunded for all others."""
    payments = await read(saga, "payments", "select order_id, payment_id, amount, state from payments")
    once(order_id for order_id, *_ in payments)
    kept = {payment_id: amount for _, payment_id, amount, state in payments if state == "kept"}
    refunded = {payment_id: amount for _, payment_id, amount, state in payments if state == "refunded"}
    assert {order_id for order_id, _, _, state in payments if state == "kept"} == completed
    assert not rejected & {order_id for order_id, *_ in payments}

    charges, refunds = saga.ledger("charge"), saga.ledger("refund")
    once(payment_id for payment_id, _ in charges)
    once(payment_id for payment_id, _ in refunds)
    assert dict(charges) == kept | refunded
    assert dict(refunds) == refunded
    assert total(charges) == sum(kept.values()) + total(refunds)


async def audit_goods(saga: Saga, *, completed: set[str]) -> None:
    """What is reserved is shipped or back on the shelf, and nothing is shipped that is not paid for."""
    reservations = await read(saga, "inventory", "select order_id, item, quantity, state from reservations")
    once((order_id, item) for order_id, item, *_ in reservations)
    assert {state for *_, state in reservations} <= {"reserved", "released"}
    assert {order_id for order_id, _, _, state in reservations if state == "reserved"} == completed

    shelf = Counter(dict(await read(saga, "inventory", "select item, available from stock")))
    for _, item, quantity, state in reservations:
        shelf[item] += quantity if state == "reserved" else 0
    assert shelf == Counter(saga.shelf)

    shipments = await read(saga, "shipping", "select order_id, state from shipments")
    once(order_id for order_id, _ in shipments)
    assert {order_id for order_id, state in shipments if state == "booked"} == completed


async def audit_letters(saga: Saga, endings: Sequence[tuple[str, str]]) -> None:
    """Every customer learns once how the order ended, and first that it was accepted, if it was."""
    letters: dict[str, list[str]] = {}
    sql = f"select order_id, letter from letters order by {saga.as_written}"
    for order_id, letter in await read(saga, "customers", sql):
        letters.setdefault(order_id, []).append(letter)
    for order_id, ending in endings:
        assert sum(letter.startswith(LETTERS[ending]) for letter in letters[order_id]) == 1
        assert all("accepted" not in letter for letter in letters[order_id][1:])


LETTERS = {
    "completed": "Your parcel is on its way",
    "cancelled": "Your order is cancelled",
    "rejected": "Your order cannot be carried out",
}


async def read(saga: Saga, service: str, sql: str) -> list[tuple[Any, ...]]:
    return [tuple(row.values()) for row in await saga.world.connection(service).fetch(sql)]


def once(names: Iterable[object]) -> None:
    assert [name for name, times in Counter(names).items() if times > 1] == []


def total(entries: Iterable[tuple[str, Decimal]]) -> Decimal:
    return sum((amount for _, amount in entries), Decimal(0))
