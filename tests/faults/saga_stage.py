"""The stage on which the order saga's own tests are played with real processes on real servers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from examples.order_saga.tests.saga import Saga
from microflow import Event
from tests.crash.readings import Logged
from tests.faults.saga_ground import SagaGround
from tests.faults.saga_processes import SagaProcesses

# Transactions that write letters of one order come one after the other; in one, the statements do.
AS_WRITTEN = "xmin::text::bigint, cmin::text::bigint, ctid"


@dataclass(frozen=True, slots=True)
class Seen:
    """An event in the log. Its flow is its order, and that is its key."""

    id: str
    type: str
    flow: str


@dataclass(frozen=True, slots=True)
class GivenUp:
    """A dead letter."""

    error: str


@dataclass(frozen=True, slots=True)
class Books:
    """A service's own tables, as they are in its database."""

    ground: SagaGround
    service: str

    async def fetch(self, sql: str, *args: object) -> Sequence[Mapping[str, Any]]:
        return [dict(row) for row in self.ground.fetch(self.service, sql, *args)]


class RealStage:
    """What a `World` is for the saga's tests. Time passes here by itself: whoever lets it pass waits for rest.

    Only what is in the log after `begin` counts.
    """

    def __init__(self, processes: SagaProcesses) -> None:
        self.processes = processes
        self._ground = processes.ground
        self._before: set[tuple[str, int, int]] = set()

    async def emit(self, event: Event, *, correlation_id: str | None = None, id: str | None = None) -> str:  # noqa: A002
        assert correlation_id is not None
        return self._ground.publish(event, flow=correlation_id, identifier=id)

    async def settle(self) -> None:
        self.processes.come_to_rest()

    async def advance(self, duration: timedelta) -> None:
        self.processes.come_to_rest()

    async def crash(self, service: str) -> None:
        self.processes.kill(service)

    def events(self, *, flow: str | None = None) -> Sequence[Seen]:
        """In the order in which they were written; of one topic, as they stand there."""
        records = sorted(
            (record for record in self._ground.log() if _place(record) not in self._before), key=lambda each: each.at
        )
        return [Seen(each.id, each.type, each.key) for each in records if flow in (None, each.key)]

    def dead_letters(self, service: str | None = None) -> Sequence[GivenUp]:
        return [
            GivenUp(row["error"])
            for each in self._ground.databases
            if service in (None, each)
            for row in self._ground.fetch(each, "select error from microflow.dead_letters order by id")
        ]

    def connection(self, service: str) -> Books:
        return Books(self._ground, service)

    def begin(self, shelf: Mapping[str, int]) -> Saga:
        """A saga without a past: the books are empty, and `shelf` replaces what is in stock of an item."""
        for service, tables in TABLES.items():
            self._ground.fetch(service, f"truncate {tables}")
        for service in self._ground.databases:
            self._ground.fetch(service, "delete from microflow.dead_letters")
        self._ground.company.ledger.execute("delete from ledger")
        self._ground.fetch("inventory", "update stock set available = case item when 'unicorn' then 0 else 1000000 end")
        for item, available in shelf.items():
            self._ground.fetch("inventory", "update stock set available = $2 where item = $1", item, available)
        self._before = {_place(record) for record in self._ground.log()}
        return saga_on(self)

    def shelf(self) -> Mapping[str, int]:
        """What is in stock."""
        return {row["item"]: row["available"] for row in self._ground.fetch("inventory", "select * from stock")}


TABLES = {
    "orders": "orders, endings",
    "payments": "payments",
    "inventory": "reservations",
    "shipping": "shipments",
    "customers": "letters",
}


def saga_on(stage: RealStage) -> Saga:
    """The saga as its own tests see it."""
    return Saga(stage, stage.processes.ground.company, stage.shelf(), as_written=AS_WRITTEN)


def _place(record: Logged) -> tuple[str, int, int]:
    return record.topic, record.partition, record.offset
