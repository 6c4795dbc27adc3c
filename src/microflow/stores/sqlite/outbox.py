"""Emitted events on their way to the log."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Collection, Iterable, Sequence
from datetime import datetime
from pathlib import Path

from microflow.embedded.database import Database
from microflow.embedded.headers import decode_headers, encode_headers
from microflow.embedded.notifications import Watch
from microflow.embedded.statements import statements
from microflow.ports import OutboxRow, OutboxStatus
from microflow.stores.sqlite.columns import instant, instant_or_none, microseconds

SQL = statements(Path(__file__).with_name("outbox.sql"))

ALL: frozenset[int] = frozenset({0})
NONE: frozenset[int] = frozenset()


class SqliteOutbox:
    """`microflow.ports.Outbox`."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._watch: Watch | None = None
        self._last_position = -1

    @property
    def shards(self) -> int:
        return 1  # the file has one writer at a time, so a second relay would only get in the first one's way

    async def pending(self, *, after: int, limit: int, shards: Collection[int] | None = None) -> Sequence[OutboxRow]:
        if shards is not None and not shards:
            return []
        return [
            OutboxRow(topic, key, value, decode_headers(headers), instant(created_at), position)
            for topic, key, value, headers, created_at, position in self._database.read(SQL["pending"], (after, limit))
        ]

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
        while (position := self._position()) == self._last_position:
            await self._watch.wait()
            self._database.check_still_there()
        self._last_position = position

    async def status(self) -> OutboxStatus:
        pending, oldest = self._database.read(SQL["status"])[0]
        return OutboxStatus(pending, instant_or_none(oldest))

    def close(self) -> None:
        if self._watch is not None:
            self._watch.close()
            self._watch = None

    def _position(self) -> int:
        rows = self._database.read(SQL["last position"])
        return int(rows[0][0]) if rows else 0


def append(connection: sqlite3.Connection, service: str, rows: Iterable[OutboxRow]) -> None:
    """Write rows to the outbox, in order, inside whatever transaction is open."""
    connection.executemany(SQL["append"], (values(service, row) for row in rows))


def values(service: str, row: OutboxRow) -> tuple[str, str, bytes | None, bytes | None, bytes, int]:
    """A row as the statement `append` takes it."""
    return (service, row.topic, row.key, row.value, encode_headers(row.headers), microseconds(row.created_at))
