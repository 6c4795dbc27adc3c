"""Watermarks: the stored offset is the lowest one that is not committed, and never goes back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from microflow.context import Context
from microflow.handlers import on
from microflow.limits import Limits
from microflow.ports import Changes, TopicPartition
from microflow.watermarks import Watermarks
from tests.runtime.bench import WRITE, Gate, bench
from tests.runtime.disturbed import DisturbedStore, Moments
from tests.runtime.events import Cancelled, Placed
from tests.runtime.virtual_loop import virtual

FIRST = TopicPartition("Placed", 0)


@given(order=st.permutations(range(12)), gaps=st.lists(st.integers(1, 3), min_size=12, max_size=12))
def test_whatever_the_order_of_ending_a_watermark_is_the_lowest_offset_that_is_open(
    order: list[int], gaps: list[int]
) -> None:
    """Rule 13. Offsets may have gaps."""
    offsets = [sum(gaps[: index + 1]) for index in range(12)]
    watermarks = Watermarks()
    watermarks.begin(FIRST, 0)
    assert all(watermarks.read(FIRST, offset) for offset in offsets)
    open_ = set(offsets)

    for index in order:
        expected = min(open_ - {offsets[index]}, default=offsets[-1] + 1)
        assert watermarks.after({FIRST: {offsets[index]}}) == {FIRST: expected}
        watermarks.finish(FIRST, offsets[index])
        open_.discard(offsets[index])
        assert watermarks.lows() == {FIRST: expected}
        assert watermarks.unfinished == len(open_)


def test_an_offset_that_was_read_before_is_not_read_again() -> None:
    """Rule 13: a redelivery inside of one assignment."""
    watermarks = Watermarks()
    watermarks.begin(FIRST, 5)

    assert not watermarks.read(FIRST, 4)
    assert watermarks.read(FIRST, 5)
    assert not watermarks.read(FIRST, 5)
    watermarks.finish(FIRST, 5)
    watermarks.finish(FIRST, 5)
    watermarks.finish(FIRST, 99)
    watermarks.finish(TopicPartition("Placed", 1), 0)
    assert watermarks.unfinished == 0
    assert watermarks.lows() == {FIRST: 6}


def test_a_partition_that_is_forgotten_counts_no_more() -> None:
    """Rule 2: what is in flight is what is owned."""
    watermarks = Watermarks()
    watermarks.begin(FIRST, 0)
    for offset in range(5):
        watermarks.read(FIRST, offset)
    watermarks.finish(FIRST, 3)
    watermarks.forget([FIRST])

    assert watermarks.unfinished == 0
    assert watermarks.unstored() == {}


@virtual
async def test_a_slow_event_holds_the_watermark_while_later_ones_are_committed() -> None:
    """Rule 13: "never a lane's own maximum"."""
    gate = Gate()

    @on("Placed")
    async def accept(order: Placed, context: Context) -> None:
        if order.number == 3:
            await gate.pass_through("3")
        context.write(WRITE, "accept", str(order.number))

    async with bench() as it:
        process = await it.start(accept)
        await it.emit(*[Placed(order=f"o-{number}", number=number) for number in range(10)])
        await it.pass_time(3)
        assert len(await it.effects()) == 9
        assert (await it.watermarks())[FIRST] == 3

        await process.crash()
        gate.open()
        await it.start(accept)
        await it.settle()

        assert len(await it.effects()) == 10
        assert (await it.watermarks())[FIRST] == 10


@virtual
async def test_a_watermark_that_moves_without_a_transaction_is_stored_within_a_second() -> None:
    """Rule 13: records skipped."""

    @on("Placed", topic="orders")
    async def accept(order: Placed) -> None: ...

    moments = Moments()
    async with bench() as it:
        await it.start(accept, store=lambda store: DisturbedStore(store, moments))
        moments.count.clear()
        await it.publish(*[it.record(Cancelled(order="a"), topic="orders") for _ in range(5)])
        await it.pass_time(1)

        assert (await it.watermarks())[TopicPartition("orders", 0)] == 5
        assert (moments.count["fence"], moments.count["claim"], moments.count["commit"]) == (1, 0, 1)


@virtual
async def test_a_watermark_of_a_transaction_that_others_overlapped_is_stored_within_a_second() -> None:
    """Rule 13: duplicates leave no transaction either."""

    @on("Placed")
    async def accept(order: Placed, context: Context) -> None:
        context.write(WRITE, "accept", order.order)

    async with bench() as it:
        process = await it.start(accept)
        (record,) = await it.emit(Placed(order="a"))
        await it.settle()
        await it.publish(record, record)
        await it.pass_time(1)

        assert (await it.watermarks())[FIRST] == 3
        assert await it.effects() == ["a"]
        assert process.outcomes() == {"done": 1, "duplicate": 2}


@virtual
async def test_an_old_epoch_stores_no_watermark() -> None:
    """Rules 13 and 14: the small transaction is fenced as well."""

    @on("Placed", topic="orders")
    async def accept(order: Placed) -> None: ...

    orders = [TopicPartition("orders", 0), TopicPartition("orders", 1)]
    async with bench(partitions=2) as it:
        process = await it.start(accept)
        await it.publish(*[it.record(Cancelled(order="a"), topic="orders", partition=n) for n in range(2)])
        await it.pass_time(0.1)
        await (await it.store()).partitions.take(orders[:1], owner="another")
        await process.transport.disconnect()
        await process.worker._housekeeping.store_watermarks_now()

        assert (await it.watermarks()).get(orders[0]) == 0
        assert process.worker._lanes[0]._runtime.assignment.lost <= {orders[0]}


@virtual
async def test_a_watermark_never_goes_back() -> None:
    """Rule 13: "never goes back (`greatest`)"."""

    @on("Placed")
    async def accept(order: Placed) -> None: ...

    async with bench() as it:
        await it.start(accept)
        await it.emit(*[Placed(order="a") for _ in range(5)])
        await it.settle()
        store = await it.store()
        async with store.transaction() as transaction:
            await transaction.write(Changes(watermarks={FIRST: 2}))

        assert (await it.watermarks())[FIRST] == 5


@virtual
async def test_the_distance_between_watermark_and_reading_is_bounded() -> None:
    """Rule 2: "at the bound the partition is paused", and resumed."""
    gate = Gate()

    @on("Placed")
    async def accept(order: Placed, context: Context) -> None:
        if order.number == 0:
            await gate.pass_through("0")
        context.write(WRITE, "accept", str(order.number))

    async with bench(partitions=2) as it:
        process = await it.start(accept, limits=Limits(window=50, fetch=10))
        slow = [it.record(Placed(order=f"o-{number}", number=number), partition=0) for number in range(200)]
        other = [it.record(Placed(order=f"p-{number}", number=1000), partition=1) for number in range(200)]
        await it.publish(*slow, *other)
        await it.pass_time(3)

        positions = process.worker._watermarks.positions()
        assert 50 <= positions[FIRST] <= 60
        assert positions[TopicPartition("Placed", 1)] == 200  # only the slow one's partition is paused
        gate.open()
        await it.settle()
        assert len(await it.effects()) == 400


@virtual
async def test_what_is_in_flight_is_bounded_over_all_partitions() -> None:
    """Rule 2."""
    gate = Gate()

    @on("Placed")
    async def accept(order: Placed, context: Context) -> None:
        await gate.pass_through(str(order.number))
        context.write(WRITE, "accept", str(order.number))

    async with bench(partitions=3) as it:
        process = await it.start(accept, limits=Limits(in_flight=30, fetch=500))
        await it.emit(*[Placed(order=f"o-{number}", number=number) for number in range(300)])
        await it.until(lambda: gate.waiting)
        await it.pass_time(3)

        assert process.worker._watermarks.unfinished == 30
        gate.open()
        await it.settle()
        assert len(await it.effects()) == 300


@pytest.mark.parametrize("failing", [1, 2])
def test_an_event_is_finished_only_when_all_its_handlers_are(failing: int) -> None:
    """Rule 13: several handlers, one offset."""

    @virtual
    async def scenario() -> None:
        gate = Gate()

        @on("Placed")
        async def first(order: Placed) -> None:
            if failing == 1:
                await gate.pass_through("it")

        @on("Placed")
        async def second(order: Placed) -> None:
            if failing == 2:
                await gate.pass_through("it")

        async with bench() as it:
            await it.start(first, second)
            await it.emit(Placed(order="a"))
            await it.until(lambda: gate.waiting)
            await it.pass_time(2)
            assert (await it.watermarks())[FIRST] == 0
            gate.open()
            await it.pass_time(2)
            assert (await it.watermarks())[FIRST] == 1

    scenario()
