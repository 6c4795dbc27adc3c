"""A relay beside an old snapshot: what was published and deleted since cannot be removed while somebody holds it."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from datetime import timedelta

import asyncpg
from flow import BenchmarkError
from scenery import Scenery

from microflow.clocks import SystemClock
from microflow.connect import connect_store, connect_transport
from microflow.ports import Store
from microflow.relay import Relay
from microflow.settings import read_settings

AT_ONCE = 500
AHEAD = 2_000
PATIENCE = timedelta(minutes=2)
APPEND = """insert into microflow.outbox (service, topic, key, value, headers, created_at)
select 'web', $1, convert_to('account-' || number % 1000, 'utf8'), convert_to(repeat('x', 200), 'utf8'),
    '', now()
from generate_series(1, $2) as number"""


@dataclass(frozen=True, slots=True)
class Beside:
    """Rows published a second, by a relay in a fresh table and by one beside a snapshot as old as its own rows."""

    fresh: Sequence[float]
    beside_snapshot: Sequence[float]
    dead: int


async def measure_beside_snapshot(scenery: Scenery, *, rounds: int, dead: int, rows: int) -> Beside:
    """Let two relays, in databases of their own, publish and delete so many rows, then measure both in turns."""
    async with _relaying(scenery) as fresh, _relaying(scenery) as beside:
        snapshot = await asyncpg.connect(beside.database)
        try:
            await snapshot.execute("begin isolation level repeatable read")
            await snapshot.fetchval("select count(*) from microflow.outbox")
            rates: dict[_Relaying, list[float]] = {fresh: [], beside: []}
            for each in rates:
                await each.publish(dead)
            for _ in range(rounds):
                for each, found in rates.items():
                    found.append(await each.publish(rows))
        finally:
            await snapshot.close()
        return Beside(rates[fresh], rates[beside], dead)


class _Relaying:
    def __init__(
        self,
        database: str,
        topic: str,
        *,
        store: Store,
        writer: asyncpg.Connection,
        relay: Relay,
        running: asyncio.Task[None],
    ) -> None:
        self.database = database
        self._store = store
        self._topic = topic
        self._relay = relay
        self._writer = writer
        self._running = running

    async def publish(self, rows: int) -> float:
        """Append so many rows, a few ahead of the relay; return how many it has published a second."""
        began, before = time.monotonic(), self._relay.published
        async with asyncio.timeout(PATIENCE.total_seconds()):
            for number in range(AT_ONCE, rows + 1, AT_ONCE):
                await self._writer.execute(APPEND, self._topic, AT_ONCE)
                self._relay.wake()
                await self._until_published(before + number - AHEAD)
            await self._until_published(before + rows)
            took = time.monotonic() - began
            while (await self._store.outbox.status()).pending:  # noqa: ASYNC110 - the last ones are being deleted
                await asyncio.sleep(0.01)
        if self._relay.published != before + rows:
            raise BenchmarkError(f"the relay has published {self._relay.published - before} of {rows} rows")
        return rows / took

    async def _until_published(self, number: int) -> None:
        while self._relay.published < number:
            await asyncio.wait([self._running], timeout=0.001)
            if self._running.done():
                await self._running


@contextlib.asynccontextmanager
async def _relaying(scenery: Scenery) -> AsyncIterator[_Relaying]:
    database, topic, clock = await scenery.new_database(), await scenery.new_topic("relayed"), SystemClock()
    settings = read_settings({"kafka": scenery.kafka, "database": database}, environment={})
    async with contextlib.AsyncExitStack() as stack:
        transport = await connect_transport(settings, clock=clock)
        stack.push_async_callback(transport.close)
        store = await connect_store(settings, service="web", clock=clock)
        stack.push_async_callback(store.close)
        writer = await asyncpg.connect(database)
        stack.push_async_callback(writer.close)
        relay = Relay(store.outbox, transport, clock=clock, owner=secrets.token_hex(4), chance=lambda: 0.5)
        running = asyncio.create_task(relay.run())
        try:
            yield _Relaying(database, topic, store=store, writer=writer, relay=relay, running=running)
        finally:
            running.cancel()
            await asyncio.wait([running])
