"""Outages: the cable is cut if our own store failed and a probe fails too; then nothing is counted."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest

from microflow.connection import Connection
from microflow.context import Context
from microflow.errors import StoreConflict, StoreError, StoreUnavailable
from microflow.handlers import on
from microflow.limits import Limits
from microflow.outages import Outages
from microflow.ports import TopicPartition
from microflow.retries import Retry
from tests.runtime.bench import WRITE, Gate, bench
from tests.runtime.disturbed import DisturbedStore, Moments
from tests.runtime.events import Accepted, Cancelled, Placed
from tests.runtime.telling import telling, told
from tests.runtime.virtual_loop import virtual

SOON = Retry(attempts=2, first_delay=timedelta(seconds=1), jitter=0)


class Deadlock(StoreError):
    """What a server says when two transactions wait for each other."""

    transient = True


@virtual
async def test_while_the_database_is_away_everything_waits_and_nothing_is_counted() -> None:
    """Rule 5."""
    moments = Moments()

    @on("Placed", retry=SOON)
    async def accept(order: Placed, context: Context) -> Accepted:
        context.write(WRITE, "accept", order.order)
        return Accepted(order=order.order)

    @on("Cancelled", retry=SOON)
    async def cancel(order: Cancelled, connection: Connection, context: Context) -> None:
        await connection.execute(WRITE, "cancel", f"{order.order}{context.attempt}")

    async with bench() as it:
        process = await it.start(accept, cancel, store=lambda store: DisturbedStore(store, moments))
        moments.out = True
        await it.emit(Placed(order="a"), Placed(order="b"), Cancelled(order="c"))
        await it.pass_time(3600)
        assert process.reports == []
        assert moments.count["probe"] > 5
        assert moments.count["probe"] < 3600  # with backoff
        moments.out = False
        await it.pass_time(10)
        await it.settle()

        assert sorted(await it.effects()) == ["a", "b", "c1"]
        assert process.outcomes() == {"done": 3}
        assert {report.attempt for report in process.reports} == {1}
        assert await it.dead_letters() == []


@virtual
async def test_an_outage_is_told_once_and_its_end_once_by_however_many_it_is_met(
    caplog: pytest.LogCaptureFixture,
) -> None:
    moments, gate = Moments(), Gate()

    async def fail_late() -> None:
        await gate.pass_through("late")
        raise StoreUnavailable("the disk is full")

    with telling(caplog):
        async with bench() as it:
            outages = Outages(
                DisturbedStore(await it.store(), moments),
                clock=it.clock,
                chance=it.chance.random,
            )
            moments.plan("probe", fail_late)
            late = asyncio.create_task(outages.cut())
            await it.pass_time(0.01)
            moments.out = True
            some = [asyncio.create_task(outages.cut()) for _ in range(5)]
            await it.pass_time(60)
            more = [asyncio.create_task(outages.cut()) for _ in range(5)]
            await it.pass_time(60)
            moments.out = False
            await it.pass_time(10)
            gate.open("late")
            answers = await asyncio.gather(late, *some, *more)

    assert answers == [True] * 11
    assert not outages.out
    assert told(caplog, "the database") == [
        "the database cannot be written; waiting, nothing is lost: the disk is full",
        "the database can be written again",
    ]


@virtual
async def test_while_the_database_is_away_the_service_is_not_ready_and_says_why() -> None:
    """Rule 23."""
    moments = Moments()

    @on("Placed", retry=SOON)
    async def accept(order: Placed, context: Context) -> Accepted:
        context.write(WRITE, "accept", order.order)
        return Accepted(order=order.order)

    async with bench() as it:
        process = await it.start(accept, store=lambda store: DisturbedStore(store, moments))
        assert (await process.worker.readiness()).ready
        moments.out = True
        await it.emit(Placed(order="a"))
        await it.pass_time(10)
        assert (await process.worker.readiness()).missing == ("its database cannot be written",)
        moments.out = False
        await it.pass_time(10)

        assert (await process.worker.readiness()).ready


@pytest.mark.parametrize("moment", ["begin", "fence", "claim", "write", "commit", "committed", "look_up"])
def test_a_passing_error_is_tried_five_times_uncounted(moment: str) -> None:
    """Rule 5: "serialization failures, deadlocks and connections that died are first retried five times"."""

    @virtual
    async def scenario() -> None:
        moments = Moments()

        @on("Placed", retry=SOON)
        async def accept(order: Placed, context: Context) -> None:
            context.write(WRITE, "accept", f"{order.order}{context.attempt}")

        async with bench() as it:
            process = await it.start(accept, store=lambda store: DisturbedStore(store, moments))
            moments.plan(moment, *[Deadlock("deadlock detected") for _ in range(5)])
            await it.emit(Placed(order="a"))
            await it.pass_time(5)
            await it.settle()

            assert await it.effects() == ["a1"]
            assert [report.outcome for report in process.reports] in (["done"], ["duplicate"])
            assert not moments.planned[moment]

    scenario()


@virtual
async def test_the_sixth_passing_error_is_an_attempt_of_the_event_it_belongs_to() -> None:
    """Rules 4 and 5: the others are committed."""
    moments = Moments()

    @on("Placed", retry=SOON)
    async def accept(order: Placed, connection: Connection, context: Context) -> None:
        if order.order == "b" and context.attempt == 1:
            raise Deadlock("always, while it is the first attempt")
        await connection.execute(WRITE, "accept", f"{order.order}{context.attempt}")

    async with bench() as it:
        process = await it.start(accept, store=lambda store: DisturbedStore(store, moments))
        await it.emit(Placed(order="a"), Placed(order="b"), Placed(order="c"))
        await it.pass_time(10)
        await it.settle()

        assert sorted(await it.effects()) == ["a1", "b2", "c1"]
        assert process.outcomes() == {"done": 3, "retry": 1}


@virtual
async def test_an_outage_in_the_middle_of_a_connection_handler_is_not_its_failure() -> None:
    """Rule 5."""
    moments = Moments()

    @on("Placed", retry=Retry.never())
    async def accept(order: Placed, connection: Connection) -> None:
        await asyncio.sleep(0.5)
        if moments.out:
            raise StoreUnavailable("the server has gone away")
        await connection.execute(WRITE, "accept", order.order)

    async with bench() as it:
        process = await it.start(accept, store=lambda store: DisturbedStore(store, moments))
        await it.emit(Placed(order="a"))
        await it.pass_time(0.1)
        moments.out = True
        await it.pass_time(60)
        moments.out = False
        await it.pass_time(10)
        await it.settle()

        assert await it.effects() == ["a"]
        assert process.outcomes() == {"done": 1}


@virtual
async def test_a_store_error_that_a_handler_has_wrapped_is_judged_by_its_origin() -> None:
    """Rule 5: "whatever class the exception has"."""
    moments = Moments()

    @on("Placed", retry=Retry.never())
    async def accept(order: Placed, connection: Connection) -> None:
        await asyncio.sleep(0.5)
        try:
            await connection.execute(WRITE if not moments.out else "insert into a_table_that_is_away", "x", "y")
        except StoreError as cause:
            raise ValueError("the order could not be stored") from cause

    async with bench() as it:
        process = await it.start(accept, store=lambda store: DisturbedStore(store, moments))
        await it.emit(Placed(order="a"))
        await it.pass_time(0.1)
        moments.out = True
        await it.pass_time(60)
        moments.out = False
        await it.pass_time(10)
        await it.settle()

        assert process.outcomes() == {"done": 1}


@virtual
async def test_every_task_of_a_service_outlives_an_outage() -> None:
    """Rule 5: purging, storing watermarks, resuming and taking partitions wait as well."""
    moments = Moments()

    @on("Placed", retry=SOON)
    async def accept(order: Placed, context: Context) -> None:
        if context.attempt == 1:
            raise ValueError("flaky")
        context.write(WRITE, "accept", order.order)

    async with bench() as it:
        process = await it.start(
            accept, store=lambda store: DisturbedStore(store, moments), limits=Limits(fetch_wait=timedelta(minutes=1))
        )
        await it.emit(Placed(order="a"))
        await it.settle()
        await it.publish(it.record(Cancelled(order="skipped"), topic="Placed"))
        moments.out = True
        await it.pass_time(1300)  # two purges, a retry, a watermark
        await process.transport.disconnect()  # and a rebalance
        await it.pass_time(60)
        moments.out = False
        await it.pass_time(30)
        await it.settle()

        assert await it.effects() == ["a"]
        assert (await it.watermarks())[TopicPartition("Placed", 0)] == 2


@virtual
async def test_a_service_waits_for_what_others_hold_on_to_however_long(caplog: pytest.LogCaptureFixture) -> None:
    """Locks are freed some time; a service that ended would help nobody."""
    moments = Moments()

    @on("Placed")
    async def accept(order: Placed, context: Context) -> None:
        context.write(WRITE, "accept", order.order)

    with telling(caplog):
        async with bench() as it:
            moments.plan("partitions.take", *[StoreConflict("lock timeout") for _ in range(20)])
            await it.start(accept, store=lambda store: DisturbedStore(store, moments))
            await it.emit(Placed(order="a"))
            await it.settle()

            assert moments.count["partitions.take"] == 21
            assert await it.effects() == ["a"]
            assert told(caplog, "what is needed in the database") == [
                "something else holds on to what is needed in the database; waiting: lock timeout",
                "what is needed in the database is free again",
            ]


@virtual
async def test_a_failure_that_cannot_be_written_although_the_database_is_well_ends_the_service() -> None:
    """Rule 5: going on would skip the event."""
    moments = Moments()

    @on("Placed")
    async def accept(order: Placed) -> None:
        raise ValueError("no")

    async with bench() as it:
        process = await it.start(accept, store=lambda store: DisturbedStore(store, moments))
        moments.plan("write", *[StoreError("the table is gone") for _ in range(100)])
        await it.emit(Placed(order="a"))
        with pytest.raises(StoreError, match="the table is gone"):
            await it.pass_time(60)
        with pytest.raises(StoreError, match="the table is gone"):
            await process.worker.ended()
