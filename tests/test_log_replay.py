"""`log_replay`: a part of the log is read once more, and no further."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import timedelta

import pytest

from microflow import log_replay
from microflow.log_replay import Replay, Stretch
from microflow.ports import Record, TopicPartition
from microflow.transports.local import LocalTransport
from tests.runtime.bench import bench
from tests.runtime.virtual_loop import virtual

FIRST, SECOND = TopicPartition("orders", 0), TopicPartition("orders", 1)


@asynccontextmanager
async def a_log(*partitions: int) -> AsyncIterator[LocalTransport]:
    """A log whose records were written one a second, into these partitions."""
    async with bench(partitions=2) as it:
        await it.log.topics.ensure(["orders"])
        for number, partition in enumerate(partitions):
            await it.publish(Record("orders", partition, b"key", str(number).encode()))
            await it.pass_time(1)
        yield it.log


async def read(log: LocalTransport, stretches: Mapping[TopicPartition, Stretch], *, at_once: int = 100) -> list[int]:
    """The numbers of the records, in the order in which they are read."""
    numbers: list[int] = []
    async with Replay.open(log, stretches) as replay:
        while not replay.is_over:
            records = await replay.read(wait=timedelta(seconds=1), max_records=at_once)
            assert len(records) <= at_once
            numbers += [int(record.value or b"") for record in records]
    return numbers


@virtual
async def test_a_stretch_begins_and_ends_where_it_says() -> None:
    async with a_log(*[0] * 10) as log:
        assert await read(log, {FIRST: Stretch(3, 7)}) == [3, 4, 5, 6]
        assert await read(log, {FIRST: Stretch(0, 10)}, at_once=3) == list(range(10))


@virtual
async def test_what_is_not_replayed_of_a_topic_is_not_read() -> None:
    async with a_log(0, 1, 0, 1) as log:
        assert await read(log, {SECOND: Stretch(1, 2)}) == [3]


@pytest.mark.parametrize("held", [1, 500])
@virtual
async def test_records_of_several_partitions_come_in_the_order_in_which_they_were_written(
    monkeypatch: pytest.MonkeyPatch, held: int
) -> None:
    """So that a key which moved to another partition, when its topic got more of them, keeps its order."""
    monkeypatch.setattr(log_replay, "HELD", held)
    async with a_log(1, 1, 1, 0, 0, 1, 0, 1, 1, 0) as log:
        assert await read(log, {FIRST: Stretch(0, 4), SECOND: Stretch(0, 6)}, at_once=4) == list(range(10))


@virtual
async def test_what_the_log_has_no_more_is_passed_over() -> None:
    async with a_log(*[0] * 3) as log, Replay.open(log, {FIRST: Stretch(0, 5)}) as replay:
        assert len(await replay.read(wait=timedelta(seconds=1), max_records=10)) == 3
        assert await replay.read(wait=timedelta(0), max_records=10) == []
        assert replay.missing == {FIRST: Stretch(3, 5)}
        replay.pass_over(FIRST, 5)
        assert replay.is_over
