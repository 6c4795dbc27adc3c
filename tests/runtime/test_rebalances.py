"""Rebalances: what runs survives the loss of its partition, and nobody commits for a partition that is not theirs."""

from __future__ import annotations

import asyncio
from datetime import timedelta

from microflow.connection import Connection
from microflow.context import Context
from microflow.handlers import on
from microflow.limits import Limits
from microflow.ports import Record, TopicPartition
from microflow.retries import Retry
from tests.runtime.bench import WRITE, Gate, bench
from tests.runtime.disturbed import DisturbedStore, Moments
from tests.runtime.events import Accepted, Cancelled, Placed
from tests.runtime.virtual_loop import virtual

SOON = Retry(attempts=3, first_delay=timedelta(seconds=1), jitter=0)
FIRST = TopicPartition("Placed", 0)


@virtual
async def test_a_redelivered_event_adopts_the_execution_that_still_runs() -> None:
    """Rule 15: "if the partition comes back, the redelivered event adopts the running execution"."""
    gate, executed = Gate(), 0

    @on("Placed")
    async def accept(order: Placed, context: Context) -> Accepted:
        nonlocal executed
        executed += 1
        await gate.pass_through(order.order)
        context.write(WRITE, "accept", order.order)
        return Accepted(order=order.order)

    async with bench() as it:
        first = await it.start(accept)
        await it.emit(Placed(order="a"), Placed(order="a", number=2))
        await it.until(lambda: gate.waiting)

        second = await it.start(accept)  # an eager rebalance: taken away, and given back
        await it.pass_time(2)
        assert first.worker._watermarks.positions() == {FIRST: 2}
        gate.open()
        await it.settle()

        assert executed == 2
        assert await it.effects() == ["a", "a"]
        assert first.outcomes() == {"done": 2}
        assert second.reports == []


@virtual
async def test_an_execution_that_ends_while_nobody_owns_its_partition_is_adopted_too() -> None:
    """Rule 15."""
    gate, executed = Gate(), 0

    @on("Placed")
    async def accept(order: Placed, context: Context) -> None:
        nonlocal executed
        executed += 1
        await gate.pass_through(order.order)
        context.write(WRITE, "accept", order.order)

    moments, closed = Moments(), Gate()
    async with bench() as it:
        first = await it.start(accept, store=lambda store: DisturbedStore(store, moments))
        await it.emit(Placed(order="a"))
        await it.until(lambda: gate.waiting)
        moments.plan("partitions.take", lambda: closed.pass_through("take"))
        await it.start(accept)
        await it.until(lambda: closed.waiting)
        gate.open()
        await it.pass_time(1)
        assert await it.effects() == []
        closed.open()
        await it.settle()

        assert executed == 1
        assert await it.effects() == ["a"]
        assert first.outcomes() == {"done": 1}


@virtual
async def test_the_result_is_dropped_if_the_partition_went_elsewhere() -> None:
    """Rule 15: and the execution keeps its key closed in this process until it ends."""
    gate, started = Gate(), []

    @on("Placed")
    async def accept(order: Placed, context: Context) -> None:
        started.append(order.number)
        if len(started) == 1:
            await gate.pass_through(order.order)
        context.write(WRITE, "accept", str(order.number))

    async with bench() as it:
        first = await it.start(accept)
        await it.emit(Placed(order="a", number=1))
        await it.until(lambda: gate.waiting)
        second = await it.start(accept)
        await first.transport.disconnect()
        await it.until(lambda: second.told("done"))
        assert await it.effects() == ["1"]

        gate.open()
        await it.pass_time(2)

        assert await it.effects() == ["1"]
        assert started == [1, 1]
        assert first.outcomes() == {"dropped": 1}
        assert not first.worker._lanes[0]._queues


@virtual
async def test_an_orphan_keeps_its_key_closed_until_it_ends() -> None:
    """Rule 15: the key comes back with its first event done elsewhere, while the own execution of that one runs."""
    gate, started = Gate(), []

    @on("Placed")
    async def accept(order: Placed, context: Context) -> None:
        started.append(order.number)
        if len(started) == 1:
            await gate.pass_through(order.order)
        context.write(WRITE, "accept", str(order.number))

    async with bench() as it:
        first = await it.start(accept)
        await it.emit(Placed(order="a", number=1))
        await it.until(lambda: gate.waiting)
        second = await it.start(accept)
        await first.transport.disconnect()
        await it.until(lambda: second.told("done"))
        await second.stop()
        await it.emit(Placed(order="a", number=2), Placed(order="b", number=3))
        await it.pass_time(2)

        assert await it.effects() == ["1", "3"]
        gate.open()
        await it.settle()
        assert await it.effects() == ["1", "3", "2"]
        assert first.outcomes() == {"dropped": 1, "done": 2}


@virtual
async def test_an_orphan_of_a_topic_that_was_created_again_makes_way() -> None:
    """Rule 15: its record is gone with the old topic, so there is nothing that could adopt it, whatever the offsets."""
    gate, started = Gate(), []

    @on("Placed")
    async def accept(order: Placed, context: Context) -> None:
        started.append(order.number)
        if order.number == 1:
            await gate.pass_through(order.order)
        context.write(WRITE, "accept", str(order.number))

    async with bench() as it:
        first = await it.start(accept)
        await it.emit(Placed(order="a", number=1))
        await it.until(lambda: gate.waiting)
        await it.create_again("Placed")
        await it.emit(Placed(order="b", number=2), Placed(order="a", number=3))
        await it.start(accept)  # an eager rebalance: taken away, and given back
        await it.pass_time(2)
        assert await it.effects() == ["2"]
        gate.open()
        await it.settle()

        assert await it.effects() == ["2", "3"]
        assert first.outcomes() == {"dropped": 1, "done": 2}


@virtual
async def test_an_event_that_comes_back_while_its_orphan_still_runs_keeps_its_place_in_the_key() -> None:
    """Rules 7 and 15: the partition was elsewhere meanwhile, so the orphan cannot be adopted; a later event waits."""
    gate, started = Gate(), []

    @on("Placed")
    async def accept(order: Placed, context: Context) -> None:
        started.append(order.number)
        if len(started) < 3:
            await gate.pass_through(order.order)
        context.write(WRITE, "accept", str(order.number))

    async with bench() as it:
        first = await it.start(accept)
        await it.emit(Placed(order="a", number=1))
        await it.until(lambda: gate.waiting)
        second = await it.start(accept)
        await first.transport.disconnect()
        await it.until(lambda: len(gate.waiting) == 2)
        await second.crash()
        await it.emit(Placed(order="a", number=2))
        await it.pass_time(2)
        assert await it.effects() == []
        gate.open()
        await it.settle()

        assert await it.effects() == ["1", "2"]
        assert first.outcomes() == {"dropped": 1, "done": 2}
        assert not first.worker._lanes[0]._queues


@virtual
async def test_a_retry_that_outlives_its_partition_is_done_again_when_the_partition_is_back() -> None:
    """Rules 7 and 15: a parked event is not lost because its execution ran during a rebalance."""
    gate, attempts = Gate(), []

    @on("Placed", retry=SOON)
    async def accept(order: Placed, context: Context) -> None:
        attempts.append(context.attempt)
        if len(attempts) == 1:
            raise ValueError("flaky")
        if len(attempts) == 2:
            await gate.pass_through(order.order)
        context.write(WRITE, "accept", order.order)

    async with bench() as it:
        first = await it.start(accept)
        await it.emit(Placed(order="a"))
        await it.until(lambda: gate.waiting)
        await it.start(accept)
        await it.pass_time(2)
        gate.open()
        await it.settle()

        assert attempts == [1, 2, 2]
        assert await it.effects() == ["a"]
        assert await it.parked() == 0
        assert first.outcomes() == {"retry": 1, "dropped": 1, "done": 1}


@virtual
async def test_nothing_is_adopted_behind_what_another_process_has_parked() -> None:
    """Rules 1 and 15: the result was made behind an execution that never came to be."""
    gate, executed = Gate(), []
    minute = Retry(attempts=3, first_delay=timedelta(seconds=60), jitter=0)

    @on("Placed", retry=minute)
    async def accept(order: Placed, context: Context) -> None:
        executed.append(order.number)
        if order.number == 1 and executed.count(1) == 2:
            raise ValueError("in the other process it fails")
        if order.number == 2 and executed.count(2) == 1:
            await gate.pass_through("2")
        context.write(WRITE, "accept", str(order.number))

    moments, closed = Moments(), Gate()
    others, for_ever = Moments(), Gate()
    async with bench() as it:
        first = await it.start(accept, store=lambda store: DisturbedStore(store, moments))
        moments.plan("begin", lambda: closed.pass_through("begin"))
        await it.emit(Placed(order="a", number=1), Placed(order="a", number=2))
        await it.until(lambda: gate.waiting and closed.waiting)  # 1 has finished, 2 runs behind it

        others.plan("committed", lambda: for_ever.pass_through("committed"))
        await first.transport.disconnect()
        second = await it.start(accept, store=lambda store: DisturbedStore(store, others))
        await it.until(lambda: for_ever.waiting)
        await second.crash()
        closed.open()
        await it.pass_time(2)  # 1 is parked now, and 2 is redelivered while it still runs here
        gate.open()
        await it.pass_time(10)
        assert await it.effects() == []
        await it.pass_time(60)
        await it.settle()

        assert await it.effects() == ["1", "2"]
        assert executed.count(2) == 2
        assert first.told("dropped")


@virtual
async def test_a_process_that_was_fenced_takes_its_partition_back() -> None:
    """Rules 14 and 15: and reads from the watermark, past nothing."""
    moments = Moments()

    @on("Placed")
    async def accept(order: Placed, context: Context) -> None:
        context.write(WRITE, "accept", str(order.number))

    async with bench() as it:
        process = await it.start(accept, store=lambda store: DisturbedStore(store, moments))
        await it.emit(*[Placed(order=f"o-{number}", number=number) for number in range(3)])
        await it.settle()

        async def steal() -> None:
            await (await it.store()).partitions.take([FIRST], owner="a zombie")

        moments.plan("begin", steal)
        await it.emit(*[Placed(order=f"o-{number}", number=number) for number in range(3, 6)])
        await it.emit(*[Placed(order=f"o-{number}", number=number) for number in range(6, 9)])
        await it.pass_time(3)
        await it.settle()

        assert sorted(await it.effects()) == [str(number) for number in range(9)]
        assert (await it.watermarks())[FIRST] == 9
        assert process.worker._lanes[0].idle


@virtual
async def test_records_that_arrive_when_a_partition_is_taken_back_hide_none_before_them() -> None:
    """Rules 13 and 15: the fence is noticed while records are on their way."""
    moments, gate = Moments(), Gate()

    @on("Placed")
    async def accept(order: Placed, context: Context) -> None:
        if order.number < 2:
            await gate.pass_through(str(order.number))
        context.write(WRITE, "accept", str(order.number))

    async with bench() as it:
        await it.start(accept, store=lambda store: DisturbedStore(store, moments), limits=Limits(fetch=2))
        await it.emit(*[Placed(order=f"o-{number}", number=number) for number in range(2)])
        await it.until(lambda: len(gate.waiting) == 2)
        await (await it.store()).partitions.take([FIRST], owner="a zombie")
        gate.open("0")
        await it.pass_time(0.0001)
        await it.emit(*[Placed(order=f"o-{number}", number=number) for number in range(2, 12)])
        gate.open()
        await it.pass_time(5)
        await it.settle()

        assert sorted(map(int, await it.effects())) == list(range(12))


@virtual
async def test_a_duplicate_on_another_partition_is_settled_although_the_first_ones_was_lost() -> None:
    """Rules 9 and 13: otherwise the other partition's watermark would stand still."""
    gate = Gate()

    @on("Placed")
    async def accept(order: Placed, context: Context) -> None:
        await gate.pass_through(order.order)
        context.write(WRITE, "accept", order.order)

    async with bench(partitions=2) as it:
        await it.start(accept, limits=Limits(fetch_wait=timedelta(milliseconds=100)))
        record = it.record(Placed(order="a"), partition=0)
        await it.publish(record)
        await it.until(lambda: gate.waiting)
        await it.publish(record._replace(partition=1), it.record(Placed(order="b"), partition=0))
        await it.until(lambda: len(gate.waiting) == 2)
        await (await it.store()).partitions.take([FIRST], owner="a zombie")
        gate.open("b")  # whose fence tells that the first partition is lost
        await it.pass_time(5)
        gate.open()
        await it.settle()

        assert sorted(await it.effects()) == ["a", "b"]
        await it.pass_time(2)
        assert await it.watermarks() == {FIRST: 2, TopicPartition("Placed", 1): 1}


@virtual
async def test_a_partition_that_is_paused_when_it_is_taken_back_goes_on() -> None:
    """Rule 2 and 15."""
    gate = Gate()

    @on("Placed")
    async def accept(order: Placed, context: Context) -> None:
        await gate.pass_through(str(order.number))
        context.write(WRITE, "accept", str(order.number))

    async with bench() as it:
        await it.start(accept, limits=Limits(in_flight=4, fetch=2))
        await it.emit(*[Placed(order=f"o-{number}", number=number) for number in range(20)])
        await it.until(lambda: len(gate.waiting) == 4)
        await it.pass_time(1.5)
        await (await it.store()).partitions.take([FIRST], owner="a zombie")
        gate.open()
        await it.pass_time(5)
        await it.settle()

        assert sorted(map(int, await it.effects())) == list(range(20))


@virtual
async def test_a_zombie_commits_nothing_and_leaves_the_partition_to_its_owner() -> None:
    """Rule 14: the epochs of all touched partitions are checked at the commit."""
    moments, gate = Moments(), Gate()

    @on("Placed")
    async def accept(order: Placed, context: Context) -> Accepted:
        context.write(WRITE, "accept", str(order.number))
        return Accepted(order=order.order)

    async with bench() as it:
        zombie = await it.start(accept, store=lambda store: DisturbedStore(store, moments))
        moments.plan("begin", lambda: gate.pass_through("begin"))
        await it.emit(Placed(order="a", number=1))
        await it.until(lambda: gate.waiting)  # stopped before its transaction

        await zombie.transport.disconnect()
        second = await it.start(accept)
        await it.until(lambda: second.told("done"))
        gate.open()
        await it.pass_time(3)

        assert await it.effects() == ["1"]
        assert len(await it.published("Accepted")) == 1
        assert zombie.told("done") == []
        await it.emit(Placed(order="a", number=2))
        await it.settle()
        assert await it.effects() == ["1", "2"]
        # The third epoch is that of the rebalance with which the zombie joined again; it began none by itself.
        owner = (await it.store())._database.read("select epoch, owner from microflow_partitions")
        assert owner == [(3, second.name)]


@virtual
async def test_a_zombie_that_is_fenced_before_it_learns_of_its_expulsion_begins_no_epoch() -> None:
    """Rule 15: it would fence the rightful owner, who would fence it, and so on."""

    @on("Placed")
    async def accept(order: Placed) -> None: ...

    async with bench() as it:
        zombie = await it.start(accept)
        store = await it.store()
        await zombie.transport.disconnect()
        zombie.worker._lanes[0]._runtime.assignment.lose([FIRST])
        subscription = zombie.worker._intake._subscription
        assert subscription is not None
        await zombie.worker._intake._take_back(subscription)

        assert store._database.read("select epoch from microflow_partitions") == [(1,)]


@virtual
async def test_a_transaction_that_is_formed_while_its_partition_is_lost_is_fenced() -> None:
    """Rule 14: "under the epochs valid at commit", of which there is none any more."""
    moments = Moments()

    @on("Placed")
    async def accept(order: Placed, context: Context) -> None:
        context.write(WRITE, "accept", str(order.number))

    async with bench() as it:
        process = await it.start(accept, store=lambda store: DisturbedStore(store, moments))

        async def lose() -> None:
            process.worker._lanes[0]._runtime.assignment.lose([FIRST])

        moments.plan("begin", lose)
        await it.emit(Placed(order="a", number=1))
        await it.pass_time(3)
        await it.settle()

        assert await it.effects() == ["1"]


@virtual
async def test_a_revocation_waits_for_the_open_transaction_and_for_nothing_else() -> None:
    """Rule 15: "revocation cancels no running handler"."""
    moments, gate, slow = Moments(), Gate(), Gate()

    @on("Placed")
    async def accept(order: Placed, context: Context) -> None:
        if order.order == "slow":
            await slow.pass_through("slow")
        context.write(WRITE, "accept", order.order)

    async with bench(partitions=2) as it:
        await it.start(accept, store=lambda store: DisturbedStore(store, moments))
        moments.plan("commit", lambda: gate.pass_through("commit"))
        await it.publish(it.record(Placed(order="slow"), partition=1), it.record(Placed(order="a"), partition=1))
        await it.until(lambda: gate.waiting)
        second = asyncio.get_running_loop().create_task(it.start(accept))
        await it.pass_time(1)
        assert not second.done()
        gate.open()
        await second
        assert "slow" in slow.waiting
        slow.open()
        await it.settle()
        assert sorted(await it.effects()) == ["a", "slow"]


@virtual
async def test_an_event_without_a_key_is_adopted_and_forgotten_like_others() -> None:
    """Rules 7 and 15; bounded memory."""
    gate, executed = Gate(), 0

    @on("Placed")
    async def accept(order: Placed, context: Context) -> None:
        nonlocal executed
        executed += 1
        await gate.pass_through("it")
        context.write(WRITE, "accept", order.order)

    async with bench() as it:
        process = await it.start(accept)
        record = it.record(Placed(order="a"))
        await it.publish(Record(record.topic, 0, None, record.value, record.headers))
        await it.until(lambda: gate.waiting)
        await it.start(accept)
        await it.pass_time(1)
        gate.open()
        await it.settle()

        assert executed == 1
        assert await it.effects() == ["a"]
        assert not process.worker._lanes[0]._queues


@virtual
async def test_a_connection_handler_that_was_cut_short_by_a_fence_runs_again_with_the_redelivery() -> None:
    """Rules 1 and 15: it was rolled back, and there is nothing to adopt."""
    moments = Moments()

    @on("Cancelled")
    async def cancel(order: Cancelled, connection: Connection) -> None:
        await connection.execute(WRITE, "cancel", order.order)

    async with bench() as it:
        await it.start(cancel, store=lambda store: DisturbedStore(store, moments))

        async def steal() -> None:
            await (await it.store()).partitions.take([TopicPartition("Cancelled", 0)], owner="a zombie")

        moments.plan("begin", steal)
        await it.emit(Cancelled(order="a"), Cancelled(order="a"), Cancelled(order="b"))
        await it.pass_time(3)
        await it.settle()

        assert sorted(await it.effects()) == ["a", "a", "b"]
