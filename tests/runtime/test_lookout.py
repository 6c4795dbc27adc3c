"""The lookout: what a program in the same process appends is found when it is committed, not at the next look."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import closing
from datetime import timedelta

from microflow.context import Context
from microflow.handlers import on
from microflow.lookout import Lookout
from microflow.outbox import Outbox
from tests.runtime.bench import Bench, Process, bench
from tests.runtime.disturbed import DisturbedStore, Moments
from tests.runtime.events import Placed
from tests.runtime.virtual_loop import virtual


@on("Placed")
async def accept(order: Placed, context: Context) -> None: ...


def caller(process: Process) -> sqlite3.Connection:
    """Another connection to the process's database, as a web application has one."""
    return sqlite3.connect(process.store.path, check_same_thread=False)


async def handled_after_commit(it: Bench, process: Process, *, open_for: float) -> timedelta:
    """How long after its commit an event is handled whose transaction was open for so many seconds after the append."""
    with closing(caller(process)) as connection:
        Outbox("web", clock=it.clock).append_sync(connection, Placed(order="a"))
        await asyncio.sleep(open_for)
        connection.commit()
        committed = it.clock.monotonic()
    before = len(process.told("done"))
    while len(process.told("done")) == before:
        await asyncio.sleep(0.000_1)
        assert it.clock.monotonic() - committed < timedelta(seconds=20)
    return it.clock.monotonic() - committed


@virtual
async def test_an_event_is_found_within_milliseconds_of_its_commit() -> None:
    """A database in memory is looked at by nobody else: without the lookout the event would wait for ever."""
    async with bench() as it:
        process = await it.start(accept)
        looking = asyncio.create_task(Lookout(process.store.outbox, clock=it.clock).run())
        await it.settle()

        assert await handled_after_commit(it, process, open_for=0.002) < timedelta(milliseconds=5)
        assert await handled_after_commit(it, process, open_for=0.03) < timedelta(milliseconds=15)
        looking.cancel()


@virtual
async def test_a_transaction_that_stays_open_costs_a_few_looks_and_no_more() -> None:
    """Whoever commits later is found by the relay's ordinary looking; two appends cost no more than one."""
    moments = Moments()
    async with bench() as it:
        process = await it.start(accept)
        store = DisturbedStore(process.store, moments)
        looking = asyncio.create_task(Lookout(store.outbox, clock=it.clock).run())
        await it.settle()
        with closing(caller(process)) as connection:
            for _ in range(2):
                Outbox("web", clock=it.clock).append_sync(connection, Placed(order="a"))
            await asyncio.sleep(10)

        assert 10 < moments.count["outbox.pending"] < 30
        looking.cancel()
