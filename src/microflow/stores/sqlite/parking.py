"""Events that wait for their next attempt, in the order of their keys."""

from __future__ import annotations

import heapq
import json
import sqlite3
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from microflow.embedded.database import Database
from microflow.embedded.headers import decode_headers, encode_headers
from microflow.embedded.notifications import Watch
from microflow.embedded.statements import statements
from microflow.ports import Blocked, ClaimKey, DeadLetter, OrderingKey, Parked, Record, TopicPartition
from microflow.stores.sqlite.columns import (
    ORDERINGS,
    ORDERS,
    instant,
    instant_or_none,
    microseconds,
    microseconds_or_none,
)
from microflow.stores.sqlite.names import Names, NamesInTransaction

SQL = statements(Path(__file__).with_name("parking.sql"))


class SqliteParking:
    """`microflow.ports.Parking`."""

    def __init__(self, database: Database, names: Names) -> None:
        self._database = database
        self._names = names
        self._watch: Watch | None = None

    async def blocked(self, keys: Collection[OrderingKey]) -> Mapping[OrderingKey, Blocked]:
        service = self._names.service
        with self._database.reading() as connection:
            if not connection.execute(SQL["anything that others wait for"], (service,)).fetchone()[0]:
                return {}
            return {key: blocked for key in keys if (blocked := _blocked(connection, service, key)) is not None}

    async def due(
        self,
        partitions: Collection[TopicPartition],
        *,
        now: datetime,
        limit: int,
        excluding: Collection[ClaimKey] = (),
        handlers: Collection[str] | None = None,
    ) -> Sequence[Parked]:
        latest = microseconds(now)
        excluded = frozenset(excluding)
        with self._database.reading() as connection:
            found = self._free(connection, partitions, handlers, latest=latest, limit=limit + len(excluded))
            chosen = [(sequence, claim) for _, sequence, claim in found if claim not in excluded]
            return [
                _parked(claim, connection.execute(SQL["parked event"], (sequence,)).fetchone())
                for sequence, claim in chosen[:limit]
            ]

    async def next_due(
        self,
        partitions: Collection[TopicPartition],
        *,
        excluding: Collection[ClaimKey] = (),
        handlers: Collection[str] | None = None,
    ) -> datetime | None:
        excluded = frozenset(excluding)
        with self._database.reading() as connection:
            found = self._free(connection, partitions, handlers, latest=2**63 - 1, limit=1 + len(excluded))
        return next((instant(due) for due, _, claim in found if claim not in excluded), None)

    async def changed(self) -> None:
        if self._watch is None:
            self._watch = self._database.watch()
        await self._watch.wait()
        self._database.check_still_there()

    def close(self) -> None:
        if self._watch is not None:
            self._watch.close()
            self._watch = None

    async def count(self) -> int:
        return sum((await self.counts()).values())

    async def counts(self, *, at_most: int | None = None) -> Mapping[str, int]:
        limit = -1 if at_most is None else at_most
        return {
            name: count for name, count in self._database.read(SQL["counts"], (self._names.service, limit)) if count
        }

    async def waiting(self, handler: str, *, limit: int) -> Sequence[Parked]:
        with self._database.reading() as connection:
            rows = connection.execute(SQL["waiting"], (self._names.service, handler, limit)).fetchall()
            return [
                _parked(ClaimKey(handler, digest), connection.execute(SQL["parked event"], (sequence,)).fetchone())
                for sequence, digest in rows
            ]

    def _free(
        self,
        connection: sqlite3.Connection,
        partitions: Collection[TopicPartition],
        handlers: Collection[str] | None,
        *,
        latest: int,
        limit: int,
    ) -> list[tuple[int, int, ClaimKey]]:
        """The first rows that wait for nothing but their time: (due, sequence, claim), the earliest due first."""
        found: list[tuple[int, int, ClaimKey]] = []
        names = None if handlers is None else json.dumps(list(handlers))
        for partition in partitions:
            number = self._names.find_partition(connection, partition)
            rows = connection.execute(SQL["due"], (number, latest, limit, names)) if number is not None else ()
            found += [(due, sequence, ClaimKey(handler, digest)) for due, sequence, handler, digest in rows]
        return heapq.nsmallest(limit, found)


class ParkingInTransaction:
    """What a transaction does to parked events."""

    def __init__(self, connection: sqlite3.Connection, names: NamesInTransaction) -> None:
        self._connection = connection
        self._names = names

    def holds(self, handler: int, digest: bytes) -> bool:
        return self._connection.execute(SQL["place"], (handler, digest)).fetchone() is not None

    def park(self, parked: Parked) -> None:
        """Put an event behind what is parked of its key; one that is parked already keeps its place."""
        handler = self._names.handler(parked.claim.handler)
        before = self._connection.execute(SQL["place"], (handler, parked.claim.digest)).fetchone()
        record = parked.record
        row = (
            handler,
            parked.claim.digest,
            self._names.service,
            record.topic,
            record.key,
            self._names.partition(record.source),
            ORDERINGS[parked.order],
            microseconds_or_none(parked.due),
            parked.attempt,
            microseconds_or_none(parked.first_failed_at),
            parked.content,
            record.offset,
            microseconds_or_none(record.timestamp),
            parked.error,
            encode_headers(record.headers),
            record.value,
        )
        self._connection.execute(SQL["park"], row)
        if before is not None and before[3] != ORDERINGS[parked.order]:
            self.free_anew(record.topic, record.key)

    def free_anew(self, topic: str, key: bytes | None) -> None:
        """Find out again who of a key waits for whom: somebody has changed what waits for it."""
        self._connection.execute(SQL["free anew"], (self._names.service, topic, key))

    def remove(self, handler: int, digest: bytes) -> bool:
        """Take a parked event out and free what waited for it alone; false if there is none."""
        place = self._connection.execute(SQL["place"], (handler, digest)).fetchone()
        if place is None:
            return False
        sequence, topic, key, ordering = place
        self._connection.execute(SQL["remove"], (sequence,))
        if key is not None and ordering == ORDERINGS["key"]:
            self._connection.execute(SQL["free after key"], (self._names.service, topic, key))
        elif key is not None and ordering == ORDERINGS["handler"]:
            self._connection.execute(SQL["free after handler"], (self._names.service, topic, key, handler))
        return True

    def bring_back(self, letter: DeadLetter, *, now: datetime) -> None:
        """Park a dead letter, due now: behind what is parked of its key, or where it stands if it halted its key."""
        handler = self._names.handler(letter.claim.handler)
        if self._connection.execute(SQL["resume halted"], (microseconds(now), handler, letter.claim.digest)).fetchall():
            return
        self.park(
            Parked(
                letter.claim,
                letter.record,
                letter.order,
                attempt=0,
                due=now,
                content=letter.content,
                error=letter.error,
                first_failed_at=letter.first_failed_at,
            )
        )


def _blocked(connection: sqlite3.Connection, service: str, key: OrderingKey) -> Blocked | None:
    args = (service, *key)
    held = bool(connection.execute(SQL["key is held"], args).fetchone()[0])
    handlers = frozenset(name for (name,) in connection.execute(SQL["held handlers"], args))
    return Blocked(held, handlers) if held or handlers else None


def _parked(claim: ClaimKey, row: tuple[Any, ...]) -> Parked:
    topic, key, ordering, due, attempt, first_failed_at, content, offset, timestamp, error, headers, value, number = row
    return Parked(
        claim=claim,
        record=Record(topic, number, key, value, decode_headers(headers), instant_or_none(timestamp), offset),
        order=ORDERS[ordering],
        attempt=attempt,
        due=instant_or_none(due),
        content=content,
        error=error,
        first_failed_at=instant_or_none(first_failed_at),
    )
