"""A server that crashes has forgotten what nobody waited for: rows that were deleted are there again."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import pytest

from microflow.clocks import SystemClock
from microflow.conformance.stores.examples import an_outbox_row
from microflow.ports import Changes
from microflow.relay import Relay
from microflow.stores.postgres import PostgresStore
from microflow.transports.local import LocalTransport
from servers.postgres import Postgres
from tests.asynchronous import asynchronous
from tests.stores.postgres.opened import connected, opened

SOON = 60.0
TRIES = 5
END_OTHERS = """select pg_terminate_backend(pid) from pg_stat_activity
where pid <> pg_backend_pid() and datname = current_database()"""
SELDOM = {"wal_writer_delay": "10s"}
"""What nobody waits for is not on the disk for so long, unless somebody else waits."""


async def scanned(store: PostgresStore, *, publisher: int) -> list[bytes | None]:
    async with store.outbox.scan(page=100, publisher=publisher) as pages:
        return [row.value async for rows in pages for row in rows]


@asynchronous
async def test_a_scan_over_a_new_connection_leaves_nothing_out_once(postgres_url: str) -> None:
    async with opened(postgres_url) as store, connected(postgres_url) as other:
        async with store.transaction() as transaction:
            await transaction.write(Changes(outbox=[an_outbox_row(1)._replace(publisher=7)]))
        assert await scanned(store, publisher=7) == [b"1"]
        assert await scanned(store, publisher=7) == []

        await other.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'microflow'"
        )
        with contextlib.suppress(Exception):
            await store.time()

        assert await scanned(store, publisher=7) == [b"1"]
        assert await scanned(store, publisher=7) == []


@pytest.mark.local_servers("postgres")
def test_what_a_crash_brings_back_is_published_once_more_by_whoever_goes_on() -> None:
    """It is said to be in the hand of a relay that has let go of it."""
    with Postgres(settings=SELDOM) as server:
        asyncio.run(crash_behind_a_deletion(server))


async def crash_behind_a_deletion(server: Postgres) -> None:
    async with a_relay(server) as (store, relay):
        for number in range(TRIES):
            await emit(store, relay, number)
            assert await relay.flush()
            server.kill()
            await asyncio.to_thread(server.start)
            if await pending(server):
                break
        else:
            raise AssertionError("the crash has brought nothing back")

        ends = time.monotonic() + SOON
        while await pending(server):
            assert time.monotonic() < ends, "what came back stays in the outbox"


@contextlib.asynccontextmanager
async def a_relay(server: Postgres) -> AsyncIterator[tuple[PostgresStore, Relay]]:
    clock = SystemClock()
    log = LocalTransport.open(Path("log.db"), clock=clock, memory=True)
    store = await PostgresStore.open(server.url, service="payments", clock=clock, lanes=1)
    await store.migrate([])
    await log.topics.ensure([an_outbox_row(0).topic])
    relay = Relay(store.outbox, log, clock=clock, owner="relay", chance=random.random, from_memory=True)
    await relay.learn([an_outbox_row(0).topic], version=0)
    running = asyncio.ensure_future(relay.run())
    try:
        yield store, relay
    finally:
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running
        await store.close()
        await log.close()


async def emit(store: PostgresStore, relay: Relay, number: int) -> None:
    outgoing = relay.outgoing
    row = an_outbox_row(number)._replace(publisher=outgoing.publisher)
    with outgoing.handing_over(version=0) as hand_over:
        async with store.transaction() as transaction:
            hand_over.take([row], await transaction.write(Changes(outbox=[row])))


async def pending(server: Postgres) -> int:
    connection = await asyncpg.connect(server.url)
    try:
        return int(await connection.fetchval("select count(*) from microflow.outbox"))
    finally:
        await connection.close()
