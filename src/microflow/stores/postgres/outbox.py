"""Emitted events on their way to the log."""

from __future__ import annotations

import asyncio
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
from microflow.stores.postgres.session import Row, Session, next_birth
from microflow.stores.postgres.sessions import Sessions
from microflow.stores.postgres.settled import NOTHING, Settled
from microflow.stores.postgres.silence import begin_alone

SQL = statements(Path(__file__).with_name("outbox.sql"))

SHARDS = 64
NOBODY = -1
"""A publisher that no row has."""
DOUBT = 60.0
"""In seconds: so often a scan passes over nothing, whatever is known. Somebody may have set positions back."""
BEGIN_SCAN = """begin isolation level repeatable read read only;
set local idle_in_transaction_session_timeout = '30s'"""
"""Between two pages their rows are published. A scan holds no locks, only the past."""


class PostgresOutbox:
    """`microflow.ports.Outbox`."""

    def __init__(self, sessions: Sessions, news: Channel, settled: Settled) -> None:
        self._sessions = sessions
        self._news = news
        self._settled = settled
        self._began_at_the_beginning = float("-inf")
        self._saw_everything = next_birth()
        self._held = 0

    @property
    def shards(self) -> int:
        return SHARDS

    async def pending(self, *, after: int, limit: int, shards: Collection[int] | None = None) -> Sequence[OutboxRow]:
        if shards is not None and not shards:
            return []
        few = shards is not None and len(shards) < SHARDS
        sql = SQL["pending of shards" if few else "pending"]
        others = (list(shards),) if few and shards is not None else ()

        async def read(session: Session) -> Sequence[Row]:
            return await session.fetch(sql, max(after, self._settled.up_to(session)), limit, *others)

        return [_outbox_row(row) for row in await self._sessions.run(read)]

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
        of_shards = (list(shards),) if few and shards is not None else ()
        await self._look_how_far_it_is_settled()
        now, birth = asyncio.get_running_loop().time(), 0
        everything = now - self._began_at_the_beginning >= DOUBT

        def bounds(session: Session) -> tuple[bool, int, int]:
            nonlocal birth
            birth = next_birth()
            # The server of a new connection may have crashed, and what was deleted unsynced is there again: it is
            # nobody's, whoever was to publish it.
            if everything or session.birth > self._saw_everything:
                return True, NOTHING, NOBODY
            return False, self._settled.up_to(session), publisher

        async def read(session: Session) -> tuple[Sequence[Row], bool]:
            sees_everything, after, left_out = bounds(session)
            rows = await session.fetch(sql, after, size, left_out, *of_shards)
            if rows and rows[0]["position"] <= self._settled.up_to(session):
                self._settled.forget()
            return rows, sees_everything

        rows, saw_everything = await self._sessions.run(read)
        if len(rows) < size:  # this is all there is, seen at one moment
            if rows:
                yield [_outbox_row(row) for row in rows]
        else:
            # From the beginning once more: what follows must be as of the same moment as what comes first.
            async with self._sessions.session() as session:
                with translated():
                    await session.script(BEGIN_SCAN)
                    saw_everything, after, left_out = bounds(session)
                    cursor = await (await session.prepared(sql)).cursor(after, None, left_out, *of_shards)
                    while rows := await cursor.fetch(size):
                        yield [_outbox_row(row) for row in rows]
                    await session.script("commit")
        if saw_everything:  # and the scan was not left before its end
            self._began_at_the_beginning, self._saw_everything = now, birth

    async def delete(self, positions: Collection[int]) -> None:
        if not positions:
            return

        async def forget(session: Session) -> None:
            ((highest,),) = await session.fetch(SQL["delete"], list(positions))
            self._settled.deleted(session, len(positions), highest=highest)

        await self._sessions.run(forget)
        await self._look_how_far_it_is_settled()

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
        held = frozenset(row["shard"] for row in rows)
        self._held = len(held)
        return held

    async def changed(self) -> None:
        await self._news.wait()

    async def status(self) -> OutboxStatus:
        (row,) = await self._sessions.run(lambda session: session.fetch(SQL["status"], self._settled.up_to(session)))
        return OutboxStatus(row["pending"], row["oldest"])

    async def crowded(self, *, at_least: int) -> Mapping[str, int]:
        return dict(
            await self._sessions.run(
                lambda session: session.fetch(SQL["crowded"], at_least, self._settled.up_to(session))
            )
        )

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

    async def _look_how_far_it_is_settled(self) -> None:
        if self._settled.is_worth_a_look:
            await self._sessions.run(self._settled.look)

    def appended(self) -> None:
        """Rows were committed that have no publisher. A process that has all shards to publish need tell nobody."""
        self._news.tell(others=self._held < SHARDS)


def _outbox_row(row: Row) -> OutboxRow:
    topic, key, value, headers, created_at, position, publisher, partition = row
    return OutboxRow(topic, key, value, decode_headers(headers), created_at, position, publisher, partition)
