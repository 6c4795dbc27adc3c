"""Caution: what an owner that left badly can have had in hand is handled one at a time, under marks."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from datetime import timedelta
from functools import partial
from typing import Any

import pytest

from microflow.caution import Turn
from microflow.connection import Connection
from microflow.context import Context
from microflow.errors import StoreUnavailable
from microflow.handlers import on
from microflow.limits import Limits
from microflow.ports import Mark, TopicPartition
from microflow.retries import Retry
from tests.runtime.bench import WRITE, Bench, Gate, Process, bench
from tests.runtime.disturbed import DisturbedStore, Moments
from tests.runtime.events import Accepted, Cancelled, Placed
from tests.runtime.virtual_loop import virtual

FIRST, SECOND = TopicPartition("Placed", 0), TopicPartition("Placed", 1)
SOON = Retry(attempts=5, first_delay=timedelta(seconds=1), jitter=0)


class Meter:
    """A handler that takes a while, and how many of its executions were ever at work at once, by order."""

    def __init__(self, takes: float = 0.01) -> None:
        self.takes = takes
        self.at_work = 0
        self.most: dict[str, int] = {}
        self.begun: list[str] = []

    async def work(self, order: Placed | Cancelled) -> None:
        self.at_work += 1
        self.begun.append(order.order)
        try:
            await asyncio.sleep(self.takes)
        finally:
            self.most[order.order] = self.at_work
            self.at_work -= 1

    def together(self, *orders: str) -> int:
        return max((self.most[order] for order in orders or self.most), default=0)


def metered(meter: Meter) -> Any:
    @on("Placed", retry=SOON)
    async def accept(order: Placed, context: Context) -> None:
        await meter.work(order)
        context.write(WRITE, "accept", order.order)

    return accept


async def marks(it: Bench) -> Mapping[Mark, int]:
    return await (await it.store()).suspects.known([FIRST, SECOND])


def names(*numbers: int) -> list[str]:
    return [f"order-{number}" for number in numbers]


async def die_with(it: Bench, process: Process, gate: Gate) -> None:
    """Let a process die while something waits at the gate."""
    await it.until(lambda: gate.waiting)
    await process.crash()


@virtual
async def test_after_a_death_events_are_handled_one_at_a_time_and_then_together_again() -> None:
    """Rule 6: "the first window runs one event at a time in the whole process"."""
    meter = Meter()
    async with bench(partitions=2) as it:
        process = await it.start(metered(meter))
        await it.emit(*[Placed(order=name) for name in names(*range(20))])
        await it.until(lambda: meter.at_work)
        await process.crash()
        meter.most.clear()

        await it.start(metered(meter))
        await it.emit(*[Placed(order=name) for name in names(*range(20, 40))])
        await it.settle()

        assert meter.together(*names(*range(20))) == 1
        assert meter.together(*names(*range(20, 40))) > 5
        assert sorted(await it.effects()) == sorted(names(*range(40)))
        assert await marks(it) == {}


@virtual
async def test_after_a_stop_in_good_order_nothing_is_handled_with_care() -> None:
    """Rule 6: "after an unclean end of the previous owner"."""
    meter, moments = Meter(), Moments()
    async with bench() as it:
        process = await it.start(metered(meter))
        await process.stop()
        await it.emit(*[Placed(order=name) for name in names(*range(20))])
        await it.start(metered(meter), store=lambda store: DisturbedStore(store, moments))
        await it.settle()

        assert meter.together() > 5
        assert moments.count["suspects.mark"] == 0


@virtual
async def test_rebalances_between_the_living_cost_no_care() -> None:
    """Eager rebalances take partitions away and give them back all the time."""
    meter, moments = Meter(), Moments()
    async with bench(partitions=2) as it:
        processes = [
            await it.start(metered(meter), store=lambda store: DisturbedStore(store, moments)) for _ in range(3)
        ]
        await it.emit(*[Placed(order=name) for name in names(*range(20))])
        await it.until(lambda: meter.at_work)
        await processes[0].stop()
        await it.settle()

        assert meter.together() > 5
        assert moments.count["suspects.mark"] == 0
        assert moments.count["partitions.release"] > 0


@virtual
async def test_care_ends_where_the_log_ended_and_after_what_can_have_been_in_hand() -> None:
    """Rule 6: "the first window"; a backlog of millions is no reason to be slow."""
    meter, moments = Meter(), Moments()
    limits = Limits(in_flight=10, fetch=5, window=1000)
    async with bench() as it:
        process = await it.start(metered(meter), limits=limits)
        await process.crash()
        await it.emit(*[Placed(order=name) for name in names(*range(100))])

        await it.start(metered(meter), limits=limits, store=lambda store: DisturbedStore(store, moments))
        await it.settle()

        assert moments.count["suspects.mark"] == 15
        assert meter.together(*names(*range(15))) == 1
        assert meter.together(*names(*range(15, 100))) > 5


@virtual
async def test_slow_events_end_the_care_by_the_clock() -> None:
    """Care must not make a service slow for an hour because its handlers wait for somebody else."""
    meter = Meter(takes=10)
    async with bench() as it:
        process = await it.start(metered(meter), limits=Limits(careful_for=timedelta(seconds=25)))
        await process.crash()
        await it.emit(*[Placed(order=name) for name in names(*range(20))])

        await it.start(metered(meter), limits=Limits(careful_for=timedelta(seconds=25)))
        await it.pass_time(45)
        await it.settle()

        assert meter.together(*names(0, 1, 2)) == 1
        assert meter.together(*names(*range(3, 20))) == 17


@virtual
async def test_the_third_crash_makes_a_dead_letter_that_is_not_handled_again_and_its_followers_go_on() -> None:
    """Rule 6."""
    gate, started = Gate(), []

    @on("Placed", retry=SOON)
    async def accept(order: Placed, context: Context) -> None:
        started.append((order.number, context.attempt))
        if order.number == 1:
            await gate.pass_through("kills")
        context.write(WRITE, "accept", str(order.number))

    async with bench() as it:
        process = await it.start(accept)
        records = await it.emit(*[Placed(order="a", number=number) for number in range(3)], Placed(order="b", number=9))
        for _ in range(4):
            await die_with(it, process, gate)
            process = await it.start(accept)
        await it.settle()

        (letter,) = await it.dead_letters()
        assert (letter.reason, letter.attempts, letter.claim.handler) == ("crashed", 3, "accept")
        assert (letter.record.key, letter.record.value, letter.record.headers) == (
            records[1].key,
            records[1].value,
            records[1].headers,
        )
        assert letter.error.startswith("Crashed: The process ended 3 times")
        # Unmarked the first time; each crash that is counted is an attempt.
        assert [attempt for number, attempt in started if number == 1] == [1, 1, 2, 3]
        assert sorted(await it.effects()) == ["0", "2", "9"]
        assert await marks(it) == {}


@virtual
async def test_a_handler_that_halts_keeps_its_key_closed_after_crashes_too() -> None:
    """Rule 7: "unless the handler says `halt`"."""
    gate = Gate()

    @on("Placed", halt=True)
    async def accept(order: Placed, context: Context) -> None:
        if order.number == 1:
            await gate.pass_through("kills")
        context.write(WRITE, "accept", f"{order.order}{order.number}")

    async with bench() as it:
        process = await it.start(accept)
        await it.emit(*[Placed(order="a", number=number) for number in range(3)], Placed(order="b"))
        for _ in range(4):
            await die_with(it, process, gate)
            process = await it.start(accept)
        await it.settle()

        assert sorted(await it.effects()) == ["a0", "b0"]
        (letter,) = await it.dead_letters()
        gate.open()
        assert await (await it.store()).dead_letters.redrive([letter.id], now=it.clock.now()) == {letter.id}
        await it.pass_time(2)
        await it.settle()

        assert sorted(await it.effects()) == ["a0", "a1", "a2", "b0"]


@virtual
async def test_crashes_that_are_not_in_a_row_do_not_add_up() -> None:
    """The event's end clears its mark, and what was counted."""
    gate = Gate()

    @on("Placed", retry=SOON)
    async def accept(order: Placed, context: Context) -> None:
        if order.number in {1, 2, 3}:
            await gate.pass_through(str(order.number))
        context.write(WRITE, "accept", str(order.number))

    async with bench() as it:
        process = await it.start(accept)
        await it.emit(*[Placed(order="a", number=number) for number in range(5)])
        for number in (1, 2, 3):
            for _ in range(2):
                await die_with(it, process, gate)
                process = await it.start(accept)
            gate.open(str(number))
        await it.settle()

        assert await it.effects() == ["0", "1", "2", "3", "4"]
        assert await it.dead_letters() == []
        assert await marks(it) == {}


@virtual
async def test_an_event_that_fails_while_it_is_handled_with_care_is_parked_and_its_mark_goes() -> None:
    """Rule 6: "a durable mark that the event's end clears"; a failure is an end."""

    @on("Placed", retry=SOON)
    async def accept(order: Placed, context: Context) -> None:
        if context.attempt == 1:
            raise ValueError("not yet")
        context.write(WRITE, "accept", f"{order.number}, attempt {context.attempt}")

    async with bench() as it:
        await (await it.start(accept)).crash()
        await it.emit(Placed(order="a", number=1))
        await it.start(accept)
        await it.settle()
        assert (await it.parked(), await marks(it)) == (1, {})

        await it.pass_time(2)
        await it.settle()

        assert await it.effects() == ["1, attempt 2"]


@virtual
async def test_a_parked_event_that_kills_is_found_although_nothing_is_left_to_read() -> None:
    """Rule 6, for what is resumed: it may kill at its retry."""
    gate = Gate()

    @on("Placed", retry=SOON)
    async def accept(order: Placed, context: Context) -> None:
        if order.number == 1 and context.attempt == 1:
            raise ValueError("it only fails")
        if order.number == 1:
            await gate.pass_through("kills")
        context.write(WRITE, "accept", f"{order.order}{order.number}")

    async with bench() as it:
        process = await it.start(accept)
        await it.emit(*[Placed(order=order, number=number) for order in "ab" for number in (0, 1, 2)][:4])
        for _ in range(4):
            await it.pass_time(5)
            await die_with(it, process, gate)
            process = await it.start(accept)
        await it.settle()

        (letter,) = await it.dead_letters()
        assert (letter.reason, letter.attempts) == ("crashed", 1 + 3)
        assert await it.effects() == ["a0", "b0", "a2"]
        assert await it.parked() == 0


@virtual
async def test_the_handlers_of_an_event_are_committed_one_by_one() -> None:
    """What one has done is not lost when the next one kills."""
    gate, moments, committed = Gate(), Moments(), []

    @on("Placed")
    async def first(order: Placed, context: Context) -> Accepted:
        context.write(WRITE, "first", order.order)
        return Accepted(order=order.order)

    @on("Placed")
    async def second(order: Placed, context: Context) -> None:
        committed.append(await it.effects())
        await gate.pass_through("kills")

    @on("Placed")
    async def third(order: Placed, connection: Connection) -> None:
        await connection.execute(WRITE, "third", order.order)

    async with bench() as it:
        await (await it.start(first, second, third)).crash()
        await it.emit(Placed(order="a"))
        moments.plan("commit", partial(it.pass_time, 1))  # the next handler must not begin before it is over
        process = await it.start(first, second, third, store=lambda store: DisturbedStore(store, moments))
        await die_with(it, process, gate)

        assert committed == [["a"]]
        assert await marks(it) == {Mark(FIRST, 0, 0): 0}
        gate.open()
        await it.start(first, second, third)
        await it.settle()

        assert await it.effects() == ["a", "a"]
        assert await marks(it) == {}


@virtual
async def test_what_was_committed_before_the_death_needs_no_marks() -> None:
    """The watermark stands at the slow event; everything behind it is done."""
    gate, moments = Gate(), Moments()

    @on("Placed")
    async def accept(order: Placed, context: Context) -> None:
        if order.order == "slow":
            await gate.pass_through("slow")
        context.write(WRITE, "accept", order.order)

    async with bench() as it:
        process = await it.start(accept)
        await it.emit(Placed(order="slow"), *[Placed(order=name) for name in names(*range(50))])
        await it.pass_time(1)
        await process.crash()
        gate.open()
        await it.start(accept, store=lambda store: DisturbedStore(store, moments))
        await it.settle()

        assert len(await it.effects()) == 51
        assert moments.count["suspects.mark"] == 1
        assert (await it.watermarks())[FIRST] == 51, "it is stored with the end of the window"


@virtual
async def test_care_is_handed_on_when_partitions_are_taken_away_and_nothing_counts_as_a_crash() -> None:
    """A process that is alive and merely loses a partition has crashed of nothing; the next one is as careful."""
    gate, meter = Gate(), Meter()

    @on("Placed")
    async def accept(order: Placed, context: Context) -> None:
        await meter.work(order)
        if order.order == "order-0":
            await gate.pass_through("slow")
        context.write(WRITE, "accept", order.order)

    async with bench() as it:
        await (await it.start(accept)).crash()
        await it.emit(*[Placed(order=name) for name in names(*range(10))])
        first = await it.start(accept)
        await it.until(lambda: gate.waiting)
        for _ in range(4):
            other = await it.start(accept)  # an eager rebalance
            await it.pass_time(1)
            assert set((await marks(it)).values()) <= {0}
            await other.stop()
            await it.pass_time(1)
        await it.emit(*[Placed(order=name) for name in names(*range(10, 30))])
        await it.start(accept)
        gate.open()
        await it.settle()

        assert meter.together(*names(*range(10))) == 1
        assert meter.together(*names(*range(10, 30))) > 1, "it is not longer with every owner"
        assert sorted(await it.effects()) == sorted(names(*range(30)))
        assert await it.dead_letters() == []
        assert first.told("dead") == []


@virtual
async def test_care_goes_on_after_a_rebalance_that_took_its_time() -> None:
    """Whoever waits for the end of an event that was taken away learns it when it is, not when the taking begins."""
    gate, moments = Gate(), Moments()

    @on("Placed")
    async def accept(order: Placed, context: Context) -> None:
        if order.order == "order-0":
            await gate.pass_through("slow")
        context.write(WRITE, "accept", order.order)

    async with bench(partitions=2) as it:
        await (await it.start(accept)).crash()
        await it.emit(*[Placed(order=name) for name in names(*range(10))])
        await it.start(accept, store=lambda store: DisturbedStore(store, moments))
        await it.until(lambda: gate.waiting)
        moments.plan("partitions.release", partial(it.pass_time, 1))
        await it.start(accept)  # an eager rebalance: both partitions go, and one of them comes back
        await it.pass_time(2)
        gate.open()
        await it.settle()

        assert moments.count["partitions.release"] > 0
        assert sorted(await it.effects()) == sorted(names(*range(10)))


@virtual
async def test_a_parked_event_does_not_wait_with_care_for_one_that_waits_to_be_read_again() -> None:
    """An orphan is adopted by its record, and that is held back for as long as the parked event has its turn."""
    gate, moments = Gate(), Moments()

    @on("Placed", retry=SOON)
    async def settle(order: Placed, context: Context) -> None:
        if context.attempt == 1:
            raise ValueError("not yet")
        context.write(WRITE, "settle", order.order)

    @on("Placed", order="handler")
    async def note(order: Placed, context: Context) -> None:
        context.write(WRITE, "note", order.order)

    async with bench() as it:
        await (await it.start(settle, note)).crash()
        await it.emit(Placed(order="a"))
        moments.plan("commit", lambda: gate.pass_through("the failure"))
        ours = await it.start(settle, note, store=lambda store: DisturbedStore(store, moments))
        await it.until(lambda: gate.waiting)
        moments.plan("inbox.seen", partial(it.pass_time, 5))  # what is parked comes before what is read
        await ours.transport.disconnect()  # a rebalance, as soon as the failure is committed
        await it.pass_time(2)  # its next attempt is due
        gate.open()
        await it.pass_time(10)
        await it.settle()

        assert not moments.planned["inbox.seen"]
        assert sorted(await it.effects(handler="note")) == ["a"]
        assert sorted(await it.effects(handler="settle")) == ["a"]


@virtual
async def test_who_has_lost_the_partition_marks_nothing_and_begins_nothing() -> None:
    """Rule 14, for marks: one that is refused is as good as a fence."""
    started = []

    @on("Placed")
    async def accept(order: Placed, context: Context) -> None:
        started.append(order.order)
        context.write(WRITE, "accept", order.order)

    moments, taken = Moments(), []
    async with bench() as it:
        await (await it.start(accept)).crash()
        await it.emit(Placed(order="a"))
        store = await it.store()

        async def somebody_else_takes_it() -> None:
            taken.append(await store.partitions.take([FIRST], owner="somebody"))
            assert started == []

        moments.plan("suspects.mark", somebody_else_takes_it)
        await it.start(accept, store=lambda store: DisturbedStore(store, moments))
        await it.pass_time(2)
        await it.settle()

        assert len(taken) == 1
        assert started == ["a"]  # the log says that it is ours: it was taken back, with a newer epoch
        assert await it.effects() == ["a"]
        assert await marks(it) == {}


@pytest.mark.parametrize("moment", ["suspects.mark", "after suspects.mark"])
@virtual
async def test_what_is_taken_away_while_it_is_marked_does_not_begin(moment: str) -> None:
    """It belongs to whoever gets the partition; the one who had it may be that one."""
    started = []

    @on("Placed")
    async def accept(order: Placed, context: Context) -> None:
        started.append((await it.store())._database.read("select in_hand from microflow_suspects"))
        context.write(WRITE, "accept", order.order)

    moments, gate = Moments(), Gate()
    async with bench() as it:
        await (await it.start(accept)).crash()
        await it.emit(Placed(order="a"))
        moments.plan(moment, lambda: gate.pass_through("mark"))
        if moment != "suspects.mark":
            moments.plan("suspects.mark", partial(it.pass_time, 0))
        moments.plan("suspects.mark", partial(it.pass_time, 1))  # the mark of who gets it takes its time
        first = await it.start(accept, store=lambda store: DisturbedStore(store, moments))
        await it.until(lambda: gate.waiting)
        await it.start(accept)
        await it.pass_time(2)
        epoch = first.worker._intake._runtime.assignment.epoch(FIRST)
        gate.open()
        await it.pass_time(2)
        await it.settle()

        assert epoch == first.worker._intake._runtime.assignment.epoch(FIRST), "it is not lost by what is over"
        assert started == [[(1,)]], "it begins once, under a mark"
        assert await it.effects() == ["a"]
        assert await marks(it) == {}


@virtual
async def test_partitions_that_were_left_in_good_order_wait_until_care_is_over() -> None:
    """Rule 6: "in the whole process"."""
    meter = Meter()
    async with bench(partitions=2) as it:
        store = await it.store()
        await store.partitions.take([FIRST, SECOND], owner="somebody")
        await store.partitions.release({SECOND: 1}, careful_until={})
        left_badly, left_well = [
            [name for name in names(*range(40)) if it.record(Placed(order=name)).source == partition]
            for partition in (FIRST, SECOND)
        ]
        await it.emit(*[Placed(order=name) for name in names(*range(40))])
        await it.start(metered(meter), limits=Limits(in_flight=12, fetch=12))  # less than each of them holds
        await it.settle()

        assert meter.together(*left_badly) == 1
        assert meter.begun[: len(left_badly)] == left_badly
        assert meter.together(*left_well) > 5


@virtual
async def test_the_services_of_one_process_take_turns() -> None:
    """Rule 6: "in the whole process"; the other one would be said to have crashed it."""
    meter, turn = Meter(takes=1), Turn()

    @on("Placed")
    async def accept(order: Placed) -> None:
        await meter.work(order)

    @on("Cancelled")
    async def note(order: Cancelled) -> None:
        await meter.work(order)

    async with bench() as it:
        await (await it.start(accept, name="shop")).crash()
        await (await it.start(note, name="books")).crash()
        await it.emit(Placed(order="a"), Placed(order="b"), Cancelled(order="c"), Cancelled(order="d"))
        await it.start(accept, name="shop", turn=turn)
        await it.start(note, name="books", turn=turn)
        await it.settle()

        assert sorted(meter.begun) == ["a", "b", "c", "d"]
        assert meter.together() == 1


@virtual
async def test_a_log_that_ends_without_records_does_not_keep_a_service_careful_for_ever() -> None:
    """On Kafka the last offsets of a partition may belong to transactions, and hold nothing that is read."""
    meter = Meter()
    async with bench() as it:
        await (await it.start(metered(meter))).crash()
        await it.emit(Placed(order="order-0"))
        store = await it.store()
        await store.partitions.take([FIRST], owner="somebody")
        await store.partitions.release({FIRST: 2}, careful_until={FIRST: 10})
        process = await it.start(metered(meter))
        await it.settle()
        assert process.worker._caution.is_on

        await it.pass_time(20)
        assert not process.worker._caution.is_on
        await it.emit(*[Placed(order=name) for name in names(*range(1, 20))])
        await it.settle()

        assert meter.together(*names(*range(1, 20))) > 5


@virtual
async def test_a_release_that_fails_keeps_nobody_from_leaving() -> None:
    """Whoever comes next is careful in vain, that is all."""
    meter, moments = Meter(), Moments()
    async with bench() as it:
        process = await it.start(metered(meter), store=lambda store: DisturbedStore(store, moments))
        moments.plan("partitions.release", StoreUnavailable("gone for a moment"))
        assert await process.stop()

        await it.emit(Placed(order="order-0"))
        await it.start(metered(meter))
        await it.settle()

        assert await it.effects() == ["order-0"]
