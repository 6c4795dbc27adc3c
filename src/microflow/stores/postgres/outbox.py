"""Emitted events on their way to the log."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Collection, Mapping, Sequence
from datetime import datetime
from pathlib import Path

from microflow.embedded.headers import decode_headers
from microflow.embedded.statements import statements
from microflow.ports import OutboxRow, OutboxStatus
from microflow.stores.postgres.errors import translated
from microflow.stores.postgres.locks import LEASES, REGISTRY
from microflow.stores.postgres.notifications import Channel
from microflow.stores.postgres.session import Row
from microflow.stores.postgres.sessions import Sessions
from microflow.stores.postgres.silence import begin_alone

SQL = statements(Path(__file__).with_name("outbox.sql"))

SHARDS = 64
NOBODY = -1
"""A publisher that no row has."""
BEGIN_SCAN = """begin isolation level repeatable read read only;
set local idle_in_transaction_session_timeout = '30s'"""
"""Between two pages their rows are published. A scan holds no locks, only the past."""


class PostgresOutbox:
    """`microflow.ports.Outbox`."""

    def __init__(self, sessions: Sessions, news: Channel) -> None:
        self._sessions = sessions
        self._news = news
        self._held = 0

    @property
    def shards(self) -> int:
        return SHARDS

    async def pending(self, *, after: int, limit: int, shards: Collection[int] | None = None) -> Sequence[OutboxRow]:
        if shards is None or len(shards) >= SHARDS:
            rows = await self._sessions.fetch(SQL["pending"], after, limit)
        elif shards:
            rows = await self._sessions.fetch(SQL["pending of shards"], after, limit, list(shards))
        else:
            return []
        return [_outbox_row(row) for row in rows]

    @contextlib.asynccontextmanager
    async def scan(
        self, *, page: int, shards: Collection[int] | None = None, publisher: int | None = None
    ) -> AsyncIterator[AsyncIterator[Sequence[OutboxRow]]]:
        pages = self._pages(page, NOBODY if publisher is None else publisher, shards)
        async with contextlib.aclosing(pages):
            yield pages

    async def _pages(
        self, size: int, publisher: int, shards: Collection[int] | None
    ) -> AsyncGenerator[Sequence[OutboxRow]]:
        if shards is not None and not shards:
            return
        few = shards is not None and len(shards) < SHARDS
        sql = SQL["page of shards" if few else "page"]
        others = (publisher, list(shards)) if few and shards is not None else (publisher,)
        rows = await self._sessions.fetch(sql, -1, size, *others)
        if len(rows) < size:  # this is all there is, seen at one moment
            if rows:
                yield [_outbox_row(row) for row in rows]
            return
        # From the beginning once more: what follows must be as of the same moment as what comes first.
        async with self._sessions.session() as session:
            with translated():
                await session.script(BEGIN_SCAN)
                cursor = await (await session.prepared(sql)).cursor(-1, None, *others)
                while rows := await cursor.fetch(size):
                    yield [_outbox_row(row) for row in rows]
                await session.script("commit")

    async def delete(self, positions: Collection[int]) -> None:
        if positions:
            await self._sessions.fetch(SQL["delete"], list(positions))

    async def lease(self, *, owner: str, now: datetime, until: datetime) -> frozenset[int]:
        async with self._sessions.session() as session:
            with translated():
                await begin_alone(session, LEASES)
                rows: Sequence[Row] = []
                if until > now:
                    rows = await session.fetch(SQL["lease"], owner, now, until)
                else:
                    await session.fetch(SQL["release"], owner)
                await session.script("commit")
        held = frozenset(row["shard"] for row in rows if row["shard"] is not None)
        self._held = len(held)
        return held

    async def changed(self) -> None:
        await self._news.wait()

    async def status(self) -> OutboxStatus:
        (row,) = await self._sessions.fetch(SQL["status"])
        return OutboxStatus(row["pending"], row["oldest"])

    async def crowded(self, *, at_least: int) -> Mapping[str, int]:
        return dict(await self._sessions.fetch(SQL["crowded"], at_least))

    async def partition_counts(self, found: Mapping[str, int]) -> Mapping[str, int]:
        counts: dict[str, int] = dict(await self._sessions.fetch(SQL["partition counts"], list(found)))
        if len(counts) < len(found):
            await self._sessions.fetch(SQL["remember partition counts"], list(found), list(found.values()))
            counts = dict(await self._sessions.fetch(SQL["partition counts"], list(found)))
        return counts

    @contextlib.asynccontextmanager
    async def switching(self, topic: str, *, partitions: int) -> AsyncIterator[int]:
        async with self._sessions.session() as session:
            with translated():
                await begin_alone(session, REGISTRY)
                ((pending,),) = await session.fetch(SQL["pending of topic"], topic)
            yield pending
            with translated():
                await session.fetch(SQL["switch"], topic, partitions)
                await session.fetch(SQL["new version of every registry"])
                await session.script("commit")

    def appended(self) -> None:
        """Rows were committed that have no publisher. A process that has all shards to publish need tell nobody."""
        self._news.tell(others=self._held < SHARDS)


def _outbox_row(row: Row) -> OutboxRow:
    topic, key, value, headers, created_at, position, publisher, partition = row
    return OutboxRow(topic, key, value, decode_headers(headers), created_at, position, publisher, partition)
