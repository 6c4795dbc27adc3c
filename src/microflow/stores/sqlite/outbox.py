"""Emitted events on their way to the log."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sqlite3
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Collection, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from microflow.embedded.database import Database
from microflow.embedded.errors import translated
from microflow.embedded.headers import decode_headers, encode_headers
from microflow.embedded.notifications import Watch
from microflow.embedded.statements import statements
from microflow.ports import Appended, Clock, OutboxRow, OutboxStatus
from microflow.stores.sqlite.columns import instant, instant_or_none, microseconds

SQL = statements(Path(__file__).with_name("outbox.sql"))

ALL: frozenset[int] = frozenset({0})
NONE: frozenset[int] = frozenset()

NOBODY = -1
"""A publisher that no row has."""
MOST_IN_OTHER_HANDS = 100
"""So many rows of others are looked through for a key; with more of them every key waits behind them."""
LATER = timedelta(seconds=1)
CROWDS = 10
"""The rows of so many crowded topics are counted."""
COUNTED_AT_ONCE = 20_000
"""Some milliseconds, in which the loop stands still."""


class SqliteOutbox:
    """`microflow.ports.Outbox`."""

    def __init__(self, database: Database, *, clock: Clock) -> None:
        self._database = database
        self._clock = clock
        self._watch: Watch | None = None
        self._last_position = -1
        self._in_hand_since: timedelta | None = None
        self._looks_later: asyncio.Task[None] | None = None

    @property
    def shards(self) -> int:
        return 1  # the file has one writer at a time, so a second relay would only get in the first one's way

    async def pending(self, *, after: int, limit: int, shards: Collection[int] | None = None) -> Sequence[OutboxRow]:
        return [] if shards is not None and not shards else self._page(after, limit, NOBODY)

    @contextlib.asynccontextmanager
    async def scan(
        self, *, page: int, shards: Collection[int] | None = None, publisher: int | None = None
    ) -> AsyncIterator[AsyncIterator[Sequence[OutboxRow]]]:
        # The file has one writer at a time: positions are in the order of the commits, and none comes late.
        nothing = shards is not None and not shards
        pages = self._pages(0 if nothing else page, NOBODY if publisher is None else publisher)
        async with contextlib.aclosing(pages):
            yield pages

    async def _pages(self, size: int, publisher: int) -> AsyncGenerator[Sequence[OutboxRow]]:
        after = -1
        while size and (rows := self._page(after, size, publisher)):
            yield rows
            after = rows[-1].position
            if len(rows) < size:
                return

    def _page(self, after: int, limit: int, publisher: int) -> list[OutboxRow]:
        return [_outbox_row(row) for row in self._database.read(SQL["pending"], (after, limit, publisher))]

    async def delete(self, positions: Collection[int]) -> None:
        # A row that a power cut brings back is published once more, and the inboxes know it.
        async with self._database.writing(synced=False) as connection:
            connection.execute(SQL["delete"], (json.dumps(list(positions)),))

    async def lease(self, *, owner: str, now: datetime, until: datetime) -> frozenset[int]:
        # Asked without the write lock first: those who do not publish ask often.
        asked = (owner, microseconds(now), microseconds(until))
        if self._database.read(SQL["somebody else publishes"], asked)[0][0]:
            return NONE
        async with self._database.writing() as connection:
            args = (owner, microseconds(until), microseconds(now))
            return ALL if connection.execute(SQL["lease"], args).fetchall() else NONE

    async def changed(self) -> None:
        if self._watch is None:
            self._watch = self._database.watch()
        while not self._has_news():
            await self._watch.wait()
            self._database.check_still_there()

    def _has_news(self) -> bool:
        """Whether rows came that anybody may publish, or some that their publisher should be done with by now."""
        position = self._position()
        if position == self._last_position:
            return False
        now = self._clock.monotonic()
        if not self._database.read(SQL["anybody's"], (self._last_position,))[0][0]:
            if self._in_hand_since is None:
                self._in_hand_since = now
                self._looks_later = asyncio.get_running_loop().create_task(self._look_later())
            if now - self._in_hand_since < LATER:
                return False
        self._last_position = position
        self._in_hand_since = None
        return True

    async def _look_later(self) -> None:
        await self._clock.sleep(LATER)
        if self._watch is not None:
            self._watch.wake()

    def appended(self) -> None:
        self._database.notifications.notify()

    async def status(self) -> OutboxStatus:
        pending, oldest = self._database.read(SQL["status"])[0]
        return OutboxStatus(pending, instant_or_none(oldest))

    async def crowded(self, *, at_least: int) -> Mapping[str, int]:
        counts: Counter[str] = Counter()
        counted, after = 0, -1
        # Positions are given in order, so this tells nearly always without counting.
        if self._database.read(SQL["span"])[0][0] < at_least:
            return counts
        while left := min(at_least * CROWDS - counted, COUNTED_AT_ONCE):
            rows = self._database.read(SQL["topics of slice"], (after, left))
            for topic, count, last in rows:
                counts[topic] += count
                counted += count
                after = max(after, last)
            if not rows:
                break
            await asyncio.sleep(0)
        return {topic: count for topic, count in counts.items() if count >= at_least}

    async def partition_counts(self, found: Mapping[str, int]) -> Mapping[str, int]:
        with self._database.reading() as connection:
            counts = _partition_counts(connection, found)
        if len(counts) < len(found):
            async with self._database.writing() as connection:
                connection.executemany(SQL["remember partition count"], sorted(found.items()))
                counts = _partition_counts(connection, found)
        return counts

    @contextlib.asynccontextmanager
    async def switching(self, topic: str, *, partitions: int) -> AsyncIterator[int]:
        async with self._database.writing(runs_foreign_code=True) as connection:
            with translated():
                pending = connection.execute(SQL["pending of topic"], (topic,)).fetchone()[0]
            yield pending
            with translated():
                connection.execute(SQL["switch"], (topic, partitions))
                connection.execute(SQL["new version of every registry"])

    def close(self) -> None:
        if self._looks_later is not None:
            self._looks_later.cancel()
        if self._watch is not None:
            self._watch.close()
            self._watch = None

    def _position(self) -> int:
        rows = self._database.read(SQL["last position"])
        return int(rows[0][0]) if rows else 0


def _partition_counts(connection: sqlite3.Connection, topics: Iterable[str]) -> dict[str, int]:
    found = ((topic, connection.execute(SQL["partition count"], (topic,)).fetchone()) for topic in topics)
    return {topic: row[0] for topic, row in found if row is not None}


def append_in_step(connection: sqlite3.Connection, service: str, rows: Sequence[OutboxRow]) -> Sequence[Appended]:
    """Write the rows of an atomic step, in order, each with its publisher where nobody else has its key in hand."""
    kept = _kept_publishers(connection, rows)
    found = connection.execute(SQL["last position"]).fetchone()
    first = 1 + (found[0] if found else 0)
    connection.executemany(
        SQL["append in a step"],
        ((*values(service, row), publisher, row.partition) for row, publisher in zip(rows, kept, strict=True)),
    )
    return [Appended(position, publisher is not None) for position, publisher in enumerate(kept, first)]


def _kept_publishers(connection: sqlite3.Connection, rows: Sequence[OutboxRow]) -> list[int | None]:
    publisher = next((row.publisher for row in rows if row.publisher is not None), None)
    if publisher is None:
        return [None] * len(rows)
    others = connection.execute(SQL["in other hands"], (publisher, MOST_IN_OTHER_HANDS + 1)).fetchall()
    if not others:
        return [row.publisher for row in rows]
    if len(others) > MOST_IN_OTHER_HANDS:
        return [row.publisher if row.key is None else None for row in rows]
    taken = set(others)
    return [row.publisher if row.key is None or (row.topic, row.key) not in taken else None for row in rows]


def values(service: str, row: OutboxRow) -> tuple[str, str, bytes | None, bytes | None, bytes, int]:
    """A row as the statement `append` takes it."""
    return (service, row.topic, row.key, row.value, encode_headers(row.headers), microseconds(row.created_at))


def _outbox_row(row: Sequence[Any]) -> OutboxRow:
    topic, key, value, headers, created_at, position, publisher, partition = row
    return OutboxRow(topic, key, value, decode_headers(headers), instant(created_at), position, publisher, partition)
