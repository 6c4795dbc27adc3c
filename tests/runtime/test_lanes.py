"""Lanes: strict sequence for each key, and nobody waits for somebody else's slow call."""

from __future__ import annotations

from datetime import timedelta
from functools import partial

from microflow.connection import Connection
from microflow.context import Context
from microflow.errors import StoreUnavailable
from microflow.faults import FaultPoint
from microflow.handlers import on
from microflow.limits import Limits
from microflow.ports import Record
from microflow.retries import Retry
from tests.runtime.bench import WRITE, Gate, bench
from tests.runtime.disturbed import DisturbedStore, Moments
from tests.runtime.events import Accepted, Cancelled, Placed
from tests.runtime.virtual_loop import virtual

SOON = Retry(attempts=3, first_delay=timedelta(seconds=1), jitter=0)
WRONG = "insert into no_such_table values (1)"


def placed(order: str, *numbers: int) -> list[Placed]:
    return [Placed(order=order, number=number) for number in numbers]


@virtual
async def test_an_event_is_handled_its_write_committed_and_its_emission_published() -> None:
    """The path of one event (architecture §5)."""

    @on("Placed")
    async def accept(order: Placed, context: Context) -> Accepted:
        context.write(WRITE, "accept", order.order)
        return Accepted(order=order.order)

    async with bench() as it:
        process = await it.start(accept)

        await it.emit(Placed(order="o-1"), Placed(order="o-2"))
        await it.settle()

        assert sorted(await it.effects()) == ["o-1", "o-2"]
        assert [record.key for record in await it.published("Accepted")] == [b"o-1", b"o-2"]
        assert process.outcomes() == {"done": 2}


@virtual
async def test_executions_of_one_key_are_strictly_sequential_and_those_of_others_concurrent() -> None:
    """Rule 1."""
    gate = Gate()

    @on("Placed")
    async def accept(order: Placed) -> None:
        await gate.pass_through(f"{order.order}/{order.number}")

    async with bench() as it:
        await it.start(accept)

        await it.emit(*placed("a", 1, 2, 3), *placed("b", 1, 2))
        await it.until(lambda: len(gate.waiting) == 2)
        await it.pass_time(5)

        assert sorted(gate.waiting) == ["a/1", "b/1"]
        gate.open("a/1")
        await it.pass_time(5)
        assert sorted(gate.waiting) == ["a/2", "b/1"]
        gate.open()
        await it.settle()
        assert [name for name in gate.passed if name[0] == "a"] == ["a/1", "a/2", "a/3"]


@virtual
async def test_the_handlers_of_one_event_run_one_after_another() -> None:
    """Rule 1: a key's executions are sequential "across all handlers of the service" (7)."""
    running: list[str] = []
    most = 0

    async def work(name: str, it_runs: Gate) -> None:
        nonlocal most
        running.append(name)
        most = max(most, len(running))
        await it_runs.pass_through(name)
        running.remove(name)

    gate = Gate()

    @on("Placed")
    async def first(order: Placed) -> None:
        await work("first", gate)

    @on("Placed")
    async def second(order: Placed) -> None:
        await work("second", gate)

    async with bench() as it:
        process = await it.start(first, second)
        await it.emit(Placed(order="a"))
        await it.until(lambda: gate.waiting)
        gate.open()
        await it.settle()

        assert most == 1
        assert gate.passed == ["first", "second"]
        assert process.outcomes() == {"done": 2}


@virtual
async def test_the_next_event_of_a_key_starts_on_success_although_nothing_is_committed_yet() -> None:
    """Rule 1: "or has finished successfully without `Connection`"."""
    started: list[int] = []
    closed, moments = Gate(), Moments()

    @on("Placed")
    async def accept(order: Placed, context: Context) -> None:
        started.append(order.number)
        context.write(WRITE, "accept", str(order.number))

    async with bench() as it:
        await it.start(accept, store=lambda store: DisturbedStore(store, moments))
        moments.plan("begin", lambda: closed.pass_through("begin"))

        await it.emit(*placed("a", 1, 2, 3))
        await it.until(lambda: closed.waiting)
        await it.pass_time(1)

        assert started == [1, 2, 3]
        assert await it.effects() == []
        closed.open()
        await it.settle()
        assert await it.effects() == ["1", "2", "3"]


@virtual
async def test_nothing_of_a_key_starts_behind_a_connection_handler_of_an_unfinished_transaction() -> None:
    """Rule 1."""
    started: list[str] = []
    moments, gate = Moments(), Gate()

    @on("Cancelled", topic="orders")
    async def cancel(order: Cancelled, connection: Connection) -> None:
        await connection.execute(WRITE, "cancel", order.order)

    @on("Placed", topic="orders")
    async def accept(order: Placed) -> None:
        started.append(order.order)

    async with bench() as it:
        process = await it.start(cancel, accept, store=lambda store: DisturbedStore(store, moments))
        moments.plan("commit", lambda: gate.pass_through("commit"))
        cancellations = [it.record(Cancelled(order="a"), topic="orders")]

        await it.publish(*cancellations, it.record(Placed(order="a"), topic="orders"))
        await it.until(lambda: gate.waiting)
        await it.pass_time(1)

        assert started == []
        gate.open()
        await it.settle()
        assert started == ["a"]
        assert process.outcomes() == {"done": 2}


@virtual
async def test_what_ran_behind_a_write_that_fails_is_dropped_and_runs_again_without_that_being_an_attempt() -> None:
    """Rule 1."""
    attempts: list[tuple[int, int]] = []
    broken = True

    @on("Placed", retry=SOON)
    async def accept(order: Placed, context: Context) -> Accepted:
        attempts.append((order.number, context.attempt))
        if order.number == 1 and broken:
            context.write(WRONG)
        context.write(WRITE, "accept", str(order.number))
        return Accepted(order=order.order, number=order.number)

    async with bench() as it:
        process = await it.start(accept)
        await it.emit(*placed("a", 1, 2, 3))
        await it.settle()

        behind = attempts[1:]
        assert behind
        assert set(behind) <= {(2, 1), (3, 1)}  # it ran behind the first, and is not committed
        assert await it.effects() == []
        assert process.outcomes() == {"retry": 1, "waiting": 2}
        broken = False
        await it.pass_time(2)
        await it.settle()
        assert await it.effects() == ["1", "2", "3"]
        assert attempts[1 + len(behind) :] == [(1, 2), (2, 1), (3, 1)]
        assert [record.value for record in await it.published("Accepted")] == [
            f'{{"order":"a","number":{number}}}'.encode() for number in (1, 2, 3)
        ]


@virtual
async def test_what_still_runs_behind_a_write_that_fails_is_dropped_when_it_ends() -> None:
    """Rule 1: "what started behind it is dropped and waits like any later event of the key"."""
    gate = Gate()
    broken = True

    @on("Placed", retry=SOON)
    async def accept(order: Placed, context: Context) -> None:
        if order.number == 1:
            context.write(WRONG if broken else WRITE, *(() if broken else ("accept", "1")))
        else:
            await gate.pass_through(str(order.number))
            context.write(WRITE, "accept", str(order.number))

    async with bench() as it:
        process = await it.start(accept)
        await it.emit(*placed("a", 1, 2, 3))
        await it.until(lambda: process.told("retry"))
        assert gate.waiting == ["2"]
        broken = False
        gate.open()
        await it.pass_time(0.5)

        assert await it.effects() == []  # 2 has ended, and 1 is still to be done
        await it.pass_time(5)
        await it.settle()
        assert await it.effects() == ["1", "2", "3"]
        assert [report.attempt for report in process.told("done")] == [2, 1, 1]


@virtual
async def test_what_has_finished_behind_a_write_that_fails_but_is_not_in_its_transaction_is_dropped() -> None:
    """Rule 1, for a follower that the transaction had no room for."""
    broken = True

    @on("Placed", retry=SOON)
    async def accept(order: Placed, context: Context) -> None:
        fails = order.number == 1 and broken
        context.write(WRONG if fails else WRITE, *(() if fails else ("accept", str(order.number))))

    moments, gate = Moments(), Gate()
    async with bench() as it:
        await it.start(accept, limits=Limits(batch=1), store=lambda store: DisturbedStore(store, moments))
        moments.plan("claim", lambda: gate.pass_through("claim"))
        await it.emit(*placed("a", 1, 2, 3))
        await it.until(lambda: gate.waiting)
        await it.pass_time(1)
        gate.open()
        await it.pass_time(0.5)
        broken = False

        assert await it.effects() == []
        await it.pass_time(5)
        await it.settle()
        assert await it.effects() == ["1", "2", "3"]


@virtual
async def test_an_unreadable_record_behind_a_write_that_fails_waits_its_turn_and_harms_nobody() -> None:
    """Rule 1: what cannot be run is not run when it is its turn again."""

    @on("Placed", retry=SOON)
    async def accept(order: Placed, context: Context) -> None:
        if context.attempt == 1 and order.number == 1:
            context.write(WRONG)
        context.write(WRITE, "accept", str(order.number))

    async with bench() as it:
        process = await it.start(accept)
        unreadable = Record("Placed", 0, b"a", b"{}", (("ce_type", b"\xff"),))

        await it.publish(it.record(Placed(order="a", number=1)), unreadable, it.record(Placed(order="a", number=2)))
        await it.settle()
        await it.pass_time(5)
        await it.settle()

        assert await it.effects() == ["1", "2"]
        assert [letter.reason for letter in await it.dead_letters()] == ["decode"]
        assert process.outcomes()["done"] == 2


@virtual
async def test_what_arrives_begins_while_a_transaction_is_open() -> None:
    """Rule 2: nobody waits for a commit but those of the key."""
    gate, moments, begun = Gate(), Moments(), list[str]()

    @on("Placed")
    async def accept(order: Placed, context: Context) -> None:
        begun.append(order.order)
        context.write(WRITE, "accept", order.order)

    async with bench() as it:
        await it.start(accept, store=lambda store: DisturbedStore(store, moments))
        moments.plan("commit", lambda: gate.pass_through("commit"))
        await it.emit(Placed(order="a"))
        await it.until(lambda: gate.waiting)
        await it.emit(Placed(order="b"))
        await it.until(lambda: begun == ["a", "b"])
        gate.open()
        await it.settle()

        assert await it.effects() == ["a", "b"]


@virtual
async def test_what_arrives_while_an_earlier_event_of_its_key_is_parked_waits_for_it() -> None:
    """Rule 7. What it was told of its key may be older than the commit that parked the earlier one."""
    gate, moments = Gate(), Moments()

    @on("Placed", retry=SOON)
    async def accept(order: Placed, context: Context) -> None:
        if order.number == 0 and context.attempt == 1:
            await gate.pass_through("0")
            raise ValueError("not yet")
        context.write(WRITE, "accept", str(order.number))

    async with bench() as it:
        await it.start(accept, store=lambda store: DisturbedStore(store, moments))
        await it.emit(Placed(order="a", number=0))
        await it.until(lambda: gate.waiting)
        moments.plan("after look_up", lambda: gate.pass_through("told"))
        await it.emit(Placed(order="a", number=1))
        await it.until(lambda: len(gate.waiting) == 2)
        gate.open("0")
        await it.pass_time(0.1)
        assert await it.parked() == 1
        gate.open()
        await it.pass_time(5)
        await it.settle()

        assert await it.effects() == ["0", "1"]


@virtual
async def test_nothing_starts_behind_one_that_has_failed_in_its_transaction() -> None:
    """Rule 2: "starts when every earlier one has committed, or has finished successfully". It had, until its write."""
    gate, moments, started = Gate(), Moments(), []

    @on("Placed", retry=SOON)
    async def accept(order: Placed, context: Context) -> None:
        started.append(order.number)
        if order.number == 1 and len(started) == 2:
            await gate.pass_through("the second")
        if order.number == 0 and context.attempt == 1:
            context.write(WRONG)
        context.write(WRITE, "accept", str(order.number))

    async with bench() as it:
        await it.start(accept, store=lambda store: DisturbedStore(store, moments))
        moments.plan("begin", partial(gate.pass_through, "the first"), partial(gate.pass_through, "its failure"))
        await it.emit(*placed("a", 0, 1, 2))
        await it.until(lambda: len(gate.waiting) == 2)
        gate.open("the first")
        await it.until(lambda: "its failure" in gate.waiting)
        gate.open("the second")
        await it.pass_time(0.1)
        assert started == [0, 1]
        gate.open()
        await it.pass_time(5)
        await it.settle()

        assert await it.effects() == ["0", "1", "2"]


@virtual
async def test_one_slow_call_delays_its_own_key_only() -> None:
    """Rule 2: "a transaction is formed from finished executions and never waits for a running one"."""
    gate = Gate()

    @on("Placed")
    async def accept(order: Placed, context: Context) -> None:
        if order.order == "slow":
            await gate.pass_through("slow")
        context.write(WRITE, "accept", f"{order.order}/{order.number}")

    async with bench() as it:
        await it.start(accept)
        others = [Placed(order=f"o-{number}") for number in range(50)]

        await it.emit(*placed("slow", 1, 2), *others)
        await it.pass_time(0.1)

        assert len(await it.effects()) == 50
        gate.open()
        await it.settle()
        assert (await it.effects())[50:] == ["slow/1", "slow/2"]


@virtual
async def test_results_survive_a_failed_commit_and_are_not_executed_again() -> None:
    """Rule 2."""
    executed: list[int] = []
    inside = 0
    moments = Moments()

    @on("Placed")
    async def accept(order: Placed, context: Context) -> Accepted:
        executed.append(order.number)
        context.write(WRITE, "accept", str(order.number))
        return Accepted(order=order.order, number=order.number)

    @on("Cancelled")
    async def cancel(order: Cancelled, connection: Connection) -> None:
        nonlocal inside
        inside += 1
        await connection.execute(WRITE, "cancel", order.order)

    async with bench() as it:
        process = await it.start(accept, cancel, store=lambda store: DisturbedStore(store, moments))
        moments.plan("commit", *[StoreUnavailable("gone") for _ in range(3)])

        await it.emit(*placed("a", 1, 2), Cancelled(order="b"))
        await it.settle()

        assert executed == [1, 2]
        assert inside == 4  # a Connection handler was rolled back, so it ran again
        assert await it.effects(handler="accept") == ["1", "2"]
        assert await it.effects(handler="cancel") == ["b"]
        assert len(await it.published("Accepted")) == 2
        assert {report.attempt for report in process.reports} == {1}


@virtual
async def test_a_commit_whose_answer_was_lost_is_not_repeated() -> None:
    """Rule 2: the claims answer."""
    moments = Moments()

    @on("Placed")
    async def accept(order: Placed, context: Context) -> Accepted:
        context.write(WRITE, "accept", order.order)
        return Accepted(order=order.order)

    async with bench() as it:
        await it.start(accept, store=lambda store: DisturbedStore(store, moments))
        moments.plan("committed", StoreUnavailable("the answer was lost"))

        await it.emit(Placed(order="a"))
        await it.settle()

        assert await it.effects() == ["a"]
        assert len(await it.published("Accepted")) == 1


@virtual
async def test_a_failure_whose_commit_was_not_answered_keeps_its_followers_waiting() -> None:
    """Rules 2 and 7: the row is there, whatever the answer was."""
    moments = Moments()

    @on("Placed", retry=SOON)
    async def accept(order: Placed, context: Context) -> None:
        if context.attempt == 1 and order.number == 1:
            raise ValueError("flaky")
        context.write(WRITE, "accept", str(order.number))

    async with bench() as it:
        await it.start(accept, store=lambda store: DisturbedStore(store, moments))
        moments.plan("committed", StoreUnavailable("the answer was lost"))

        await it.emit(*placed("a", 1, 2))
        await it.pass_time(0.9)
        assert await it.effects() == []
        await it.pass_time(5)
        await it.settle()

        assert await it.effects() == ["1", "2"]


@virtual
async def test_running_executions_are_bounded() -> None:
    """Rule 2: "bounded by settings"."""
    gate = Gate()

    @on("Placed")
    async def accept(order: Placed) -> None:
        await gate.pass_through(order.order)

    async with bench() as it:
        process = await it.start(accept, limits=Limits(concurrency=7))
        await it.emit(*[Placed(order=f"o-{number}") for number in range(30)])
        await it.until(lambda: gate.waiting)
        await it.pass_time(5)

        assert len(gate.waiting) == 7
        gate.open()
        await it.settle()
        assert process.outcomes() == {"done": 30}


@virtual
async def test_after_thousands_of_records_the_runtime_holds_none_of_them() -> None:
    """Bounded memory: what is done is forgotten, whatever became of it."""

    @on("Placed", retry=Retry(attempts=2, first_delay=timedelta(milliseconds=20), jitter=0))
    async def accept(order: Placed, context: Context) -> Accepted | None:
        if order.number % 50 == 7 and context.attempt == 1:
            raise ValueError("flaky")
        if order.number % 100 == 5:
            raise RuntimeError("never")
        if order.number % 100 == 6:
            context.write(WRONG)
        return Accepted(order=order.order) if order.number % 3 == 0 else None

    @on("Placed")
    async def note(order: Placed, connection: Connection) -> None:
        await connection.execute("select 1")

    ready = False
    limits = Limits(batch=100, in_flight=300, window=1000, fetch=100, concurrency=20)
    async with bench(partitions=3) as it:
        most = 0

        def look(point: FaultPoint) -> None:
            nonlocal most
            most = max(most, process.worker._watermarks.unfinished if ready else 0)

        process = await it.start(accept, note, limits=limits, reach=look)
        worker, ready = process.worker, True
        for batch in range(10):
            numbers = range(batch * 500, batch * 500 + 500)
            records = [it.record(Placed(order=f"o-{number % 400}", number=number)) for number in numbers]
            keyless = [Record(each.topic, each.partition, None, each.value, each.headers) for each in records[:50]]
            await it.publish(*records[50:], *keyless, *records[50:60])
            await it.settle()

        await it.pass_time(2)
        await it.settle()
        assert len(process.told("done", handler="note")) == 5000
        assert 100 < most <= 300
        for lane in worker._lanes:
            assert [len(each) for each in (lane._mailbox, lane._queues, lane._adoption._under_way, lane._runnable)] == [
                0
            ] * 4
            assert [len(each) for each in (lane._tasks, lane._finished)] == [0] * 2
        for partition in worker._watermarks._partitions.values():
            assert (len(partition.open), len(partition.done)) == (0, 0)
        worker._parking._forget_ended()
        assert not worker._parking._in_hand
        deadlines = worker._lanes[0]._runtime.deadlines
        assert (len(deadlines._running), len(deadlines._expired)) == (0, 0)
