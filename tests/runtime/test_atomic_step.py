"""The atomic step: a batch is committed without the events that fail in it, and the failure is the right one's."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import Iterator
from datetime import timedelta

import pytest

from microflow.connection import Connection
from microflow.context import Context
from microflow.errors import SqlError, StoreUnavailable, UniqueViolation
from microflow.frames import place_raised
from microflow.handlers import on
from microflow.limits import Limits
from microflow.ports import TopicPartition
from microflow.retries import Retry
from tests.runtime.bench import EFFECTS, PARENTS, WRITE, Gate, bench
from tests.runtime.disturbed import DisturbedStore, Moments
from tests.runtime.events import Accepted, Cancelled, Placed
from tests.runtime.virtual_loop import virtual

NEVER = Retry.never()
SOON = Retry(attempts=3, first_delay=timedelta(seconds=1), jitter=0)


@virtual
async def test_a_failing_event_of_a_batch_is_taken_out_and_the_others_are_committed_together() -> None:
    """Rule 4: for the others this is not an attempt."""
    executed: list[str] = []
    moments = Moments()

    @on("Placed", retry=SOON)
    async def accept(order: Placed, context: Context) -> Accepted:
        executed.append(order.order)
        context.write(WRITE, "accept", order.order)
        if order.order == "o-3":
            context.write("insert into nowhere values ($1)", 1)
        return Accepted(order=order.order)

    async with bench() as it:
        process = await it.start(accept, store=lambda store: DisturbedStore(store, moments))
        moments.count.clear()
        await it.emit(*[Placed(order=f"o-{number}") for number in range(10)])
        await it.settle()

        assert sorted(await it.effects()) == [f"o-{number}" for number in range(10) if number != 3]
        assert len(executed) == 10
        assert process.outcomes() == {"done": 9, "retry": 1}
        assert {report.attempt for report in process.told("done")} == {1}
        assert moments.count["commit"] <= 3
        assert len(await it.published("Accepted")) == 9
        assert isinstance(process.told("retry")[0].error, SqlError)


@virtual
async def test_a_failing_connection_handler_takes_nobody_with_it() -> None:
    """Rule 4: "it is found by whose handler ran"."""

    @on("Placed", retry=NEVER)
    async def accept(order: Placed, connection: Connection) -> Accepted:
        await connection.execute(WRITE, "accept", order.order)
        if order.number == 1:
            raise ValueError("no")
        return Accepted(order=order.order)

    async with bench() as it:
        process = await it.start(accept)
        await it.emit(*[Placed(order=f"o-{number}", number=number) for number in range(4)])
        await it.settle()

        assert sorted(await it.effects()) == ["o-0", "o-2", "o-3"]
        assert process.outcomes() == {"done": 3, "dead": 1}
        assert [letter.error for letter in await it.dead_letters()] == ["ValueError: no"]


@virtual
async def test_an_error_at_the_commit_is_found_by_halving_and_blamed_on_one_event() -> None:
    """Rule 4: "bisected if unknown": a deferred foreign key speaks only when the transaction ends."""
    moments = Moments()

    @on("Placed", retry=NEVER)
    async def accept(order: Placed, context: Context) -> None:
        context.write("insert into children values ($1)", "nobody" if order.number == 5 else None)
        context.write(WRITE, "accept", order.order)

    async with bench() as it:
        process = await it.start(
            accept, store=lambda store: DisturbedStore(store, moments), migrations=[EFFECTS, PARENTS]
        )
        await it.emit(*[Placed(order=f"o-{number}", number=number) for number in range(16)])
        started = it.clock.monotonic()
        await it.until(lambda: len(process.reports) == 16)

        assert process.outcomes() == {"done": 15, "dead": 1}
        assert len(await it.effects()) == 15
        assert [letter.record.key for letter in await it.dead_letters()] == [b"o-5"]
        assert (await it.dead_letters())[0].error.startswith("ForeignKeyViolation")
        assert it.clock.monotonic() - started < timedelta(seconds=1)  # no waiting for what cannot pass


@virtual
async def test_later_events_of_the_key_of_a_culprit_that_halving_found_wait_for_it() -> None:
    """Rules 1 and 4."""
    broken = True

    @on("Placed", retry=SOON)
    async def accept(order: Placed, context: Context) -> None:
        context.write("insert into children values ($1)", "nobody" if order.number == 1 and broken else None)
        context.write(WRITE, "accept", str(order.number))

    async with bench() as it:
        await it.start(accept, migrations=[EFFECTS, PARENTS])
        await it.emit(*[Placed(order="a", number=number) for number in range(6)])
        await it.pass_time(0.9)
        assert await it.effects() == ["0"]
        broken = False
        await it.pass_time(5)
        await it.settle()

        assert await it.effects() == [str(number) for number in range(6)]


@virtual
async def test_an_sql_error_that_a_handler_catches_without_a_savepoint_fails_it() -> None:
    """Rule 4: on both stores alike."""

    @on("Placed", retry=NEVER)
    async def accept(order: Placed, connection: Connection) -> None:
        await connection.execute(WRITE, "accept", order.order)
        with contextlib.suppress(SqlError):
            await connection.execute("insert into nowhere values (1)")

    async with bench() as it:
        process = await it.start(accept)
        await it.emit(Placed(order="a"), Placed(order="b"))
        await it.settle()

        assert await it.effects() == []
        assert process.outcomes() == {"dead": 2}
        assert all("nowhere" in letter.error for letter in await it.dead_letters())


@virtual
async def test_an_sql_error_behind_a_savepoint_is_the_handlers_own_affair() -> None:
    """Rule 4."""

    @on("Placed", retry=NEVER)
    async def accept(order: Placed, connection: Connection) -> None:
        await connection.execute("insert into parents values ($1)", "p")
        with pytest.raises(UniqueViolation):
            async with connection.savepoint():
                await connection.execute("insert into parents values ($1)", "p")
        await connection.execute(WRITE, "accept", order.order)

    async with bench() as it:
        await it.start(accept, migrations=[EFFECTS, PARENTS])
        await it.emit(Placed(order="a"))
        await it.settle()

        assert await it.effects() == ["a"]


@virtual
async def test_kept_writes_are_executed_in_the_order_of_the_events_of_a_key_and_before_connection_handlers() -> None:
    """Architecture §5.5."""

    @on("Placed", topic="orders")
    async def accept(order: Placed, context: Context) -> None:
        context.write(WRITE, "accept", f"{order.number}a")
        context.write(WRITE, "accept", f"{order.number}b")

    @on("Cancelled", topic="orders")
    async def cancel(order: Cancelled, connection: Connection, context: Context) -> None:
        context.write(WRITE, "cancel", "afterwards")
        await connection.execute(WRITE, "cancel", "inside")

    async with bench() as it:
        await it.start(accept, cancel)
        events = [Placed(order="a", number=1), Placed(order="a", number=2), Cancelled(order="a")]
        await it.publish(*[it.record(event, topic="orders") for event in events])
        await it.settle()

        assert await it.effects() == ["1a", "1b", "2a", "2b", "inside", "afterwards"]


@virtual
async def test_a_transaction_spans_partitions_and_is_fenced_under_all_their_epochs() -> None:
    """Rule 14: one lost partition stops only its own events."""
    moments = Moments()

    @on("Placed")
    async def accept(order: Placed, context: Context) -> None:
        context.write(WRITE, "accept", str(order.number))

    async with bench(partitions=3) as it:
        await it.start(accept, store=lambda store: DisturbedStore(store, moments))

        async def steal() -> None:
            taken = await (await it.store()).partitions.take([TopicPartition("Placed", 1)], owner="a zombie")
            assert taken

        moments.plan("begin", steal)
        records = [it.record(Placed(order=f"o-{n}", number=n), partition=n) for n in range(3)]
        await it.publish(*records)
        await it.pass_time(0.1)
        assert sorted(await it.effects()) == ["0", "2"]
        await it.pass_time(3)
        await it.settle()

        assert sorted(await it.effects()) == ["0", "1", "2"]


@virtual
async def test_nobody_else_runs_between_begin_and_commit_but_for_a_connection_handler() -> None:
    """Rule 16: no await there, so nobody waits for the write lock longer than the transaction takes."""
    ticks = 0
    began: list[int] = []
    lengths: list[int] = []
    moments = Moments()

    async def note_begin() -> None:
        began.append(ticks)

    async def note_end() -> None:
        lengths.append(ticks - began.pop())

    @on("Placed")
    async def accept(order: Placed, context: Context) -> Accepted:
        context.write(WRITE, "accept", order.order)
        return Accepted(order=order.order)

    async def tick() -> None:
        nonlocal ticks
        while True:
            await asyncio.sleep(0)
            ticks += 1
            if ticks % 50 == 0:
                await asyncio.sleep(0.001)

    async with bench() as it:
        await it.start(accept, store=lambda store: DisturbedStore(store, moments))
        moments.plan("fence", *[note_begin] * 100)
        moments.plan("commit", *[note_end] * 100)
        ticking = asyncio.get_running_loop().create_task(tick())
        await it.emit(*[Placed(order=f"o-{number}") for number in range(20)])
        await it.settle()
        ticking.cancel()

        assert ticks > 50
        assert lengths
        assert set(lengths) == {0}


@virtual
async def test_connection_handlers_run_one_at_a_time() -> None:
    """Rule 16."""
    running = most = 0

    @on("Placed")
    async def accept(order: Placed, connection: Connection) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.01)
        running -= 1
        await connection.execute(WRITE, "accept", order.order)

    async with bench() as it:
        await it.start(accept)
        await it.emit(*[Placed(order=f"o-{number}") for number in range(5)])
        await it.settle()

        assert len(await it.effects()) == 5
        assert most == 1


@virtual
async def test_a_connection_is_of_no_use_when_its_transaction_has_ended() -> None:
    """A handler that keeps it writes nothing into somebody else's transaction."""
    kept: list[Connection] = []

    @on("Placed")
    async def accept(order: Placed, connection: Connection) -> None:
        kept.append(connection)

    async with bench() as it:
        await it.start(accept)
        await it.emit(Placed(order="a"))
        await it.settle()

        with pytest.raises(Exception, match="has ended"):
            await kept[0].execute(WRITE, "accept", "late")


@virtual
async def test_the_users_own_sqlite_errors_are_attempts_whatever_their_class() -> None:
    """Rule 5: "judged by origin and by a probe, never by exception class"."""
    moments = Moments()
    errors: Iterator[BaseException] = iter([sqlite3.OperationalError("disk I/O error"), StoreUnavailable("mine")])

    @on("Placed", retry=SOON)
    async def accept(order: Placed, context: Context) -> None:
        if context.attempt < 3:
            raise next(errors)
        context.write(WRITE, "accept", order.order)

    async with bench() as it:
        process = await it.start(accept, store=lambda store: DisturbedStore(store, moments))
        await it.emit(Placed(order="a"))
        await it.pass_time(5)
        await it.settle()

        assert [report.attempt for report in process.reports] == [1, 2, 3]
        assert [report.outcome for report in process.reports] == ["retry", "retry", "done"]
        assert moments.count["probe"] == 0


@virtual
async def test_a_write_with_arguments_that_no_database_takes_fails_its_handler_only() -> None:
    """Rule 4: what the user hands in may be anything."""
    strange: list[object] = [object(), "\ud800", 2**70, float("nan"), b"fine"]

    @on("Placed", retry=NEVER)
    async def accept(order: Placed, context: Context) -> None:
        context.write("insert into effects (what) values ($1)", strange[order.number])

    @on("Cancelled", retry=NEVER)
    async def cancel(order: Cancelled, context: Context) -> None:
        context.write(["insert"])  # type: ignore[arg-type] # that is the point

    async with bench() as it:
        process = await it.start(accept, cancel)
        await it.emit(*[Placed(order=f"o-{number}", number=number) for number in range(5)], Cancelled(order="a"))
        await it.settle()

        assert await it.effects() == [b"fine"]  # type: ignore[comparison-overlap] # it was written as it is
        assert process.outcomes() == {"done": 1, "dead": 5}


@virtual
async def test_a_transaction_that_a_handler_ended_behind_our_back_is_its_failure() -> None:
    """Rule 4: nothing of it counts, and the others are committed."""

    @on("Placed", retry=NEVER)
    async def accept(order: Placed, connection: Connection) -> None:
        await connection.execute(WRITE, "accept", order.order)
        if order.order == "b":
            connection.raw.execute("rollback")

    async with bench() as it:
        process = await it.start(accept)
        await it.emit(Placed(order="a"), Placed(order="b"), Placed(order="c"))
        await it.settle()

        assert await it.effects() == ["a", "c"]
        assert process.outcomes() == {"done": 2, "dead": 1}


@virtual
async def test_a_batch_that_is_larger_than_a_transaction_is_committed_in_several() -> None:
    """Rule 2: bounded."""
    moments = Moments()

    @on("Placed")
    async def accept(order: Placed, context: Context) -> None:
        context.write(WRITE, "accept", order.order)

    gate = Gate()
    async with bench() as it:
        await it.start(accept, store=lambda store: DisturbedStore(store, moments), limits=Limits(batch=10))
        await it.settle()
        moments.count.clear()
        gate.open()
        await it.emit(*[Placed(order=f"o-{number}") for number in range(45)])
        await it.settle()

        assert len(await it.effects()) == 45
        assert 5 <= moments.count["claim"] <= 12


@virtual
async def test_of_kept_writes_that_are_sent_together_the_one_that_fails_is_found() -> None:
    """Rule 4: it is found by whose handler ran, though the database was told of all their writes in one go."""

    @on("Placed", retry=NEVER)
    async def keep(order: Placed, context: Context) -> None:
        context.write("insert into parents values ($1)", "twice" if order.order in {"o-4", "o-7"} else order.order)

    moments = Moments()
    async with bench() as it:
        process = await it.start(keep, migrations=[PARENTS], store=lambda store: DisturbedStore(store, moments))
        moments.count.clear()
        await it.emit(*[Placed(order=f"o-{number}") for number in range(10)])
        await it.settle()

        async with process.store.transaction() as transaction:
            kept = [row["id"] for row in await transaction.connection.fetch("select id from parents")]
        assert sorted(kept) == sorted({*(f"o-{number}" for number in range(10)), "twice"} - {"o-4", "o-7"})
        (report,) = process.told("dead")
        assert isinstance(report.error, UniqueViolation)
        assert report.record.key == b"o-7"
        assert place_raised(report.error) == f"{__file__}:{keep.__code__.co_firstlineno + 2}"
        assert process.outcomes() == {"done": 9, "dead": 1}
        assert moments.count["commit"] <= 3


@virtual
async def test_a_write_that_fails_is_found_where_it_was_asked_for() -> None:
    """It fails after its handler has returned, so no frame of its traceback is the user's."""

    @on("Placed", retry=NEVER)
    async def kept(order: Placed, context: Context) -> None:
        context.write("insert into nowhere values ($1)", order.order)

    @on("Placed", retry=NEVER)
    async def kept_in_the_transaction(order: Placed, context: Context, connection: Connection) -> None:
        context.write("insert into nowhere values ($1)", order.order)

    @on("Placed", retry=NEVER)
    async def at_once(order: Placed, connection: Connection) -> None:
        await connection.execute("insert into nowhere values ($1)", order.order)

    async with bench() as it:
        process = await it.start(kept, kept_in_the_transaction, at_once)
        await it.emit(Placed(order="o-1"))
        await it.settle()

        for function in (kept, kept_in_the_transaction, at_once):
            (report,) = process.told("dead", handler=function.__name__)
            line = function.__code__.co_firstlineno + 2
            assert report.error is not None
            assert place_raised(report.error) == f"{__file__}:{line}"
        letters = {letter.claim.handler: letter for letter in await it.dead_letters()}
        assert f"{__file__}:" in letters["kept"].error
        assert f"{__file__}:" in letters["kept_in_the_transaction"].error
        assert f'"{__file__}", line' in letters["at_once"].trace
