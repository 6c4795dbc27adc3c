"""The log's file: what happens to it, and what the user is told when it cannot be used."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest

from microflow.conformance.transports.harness import member_of, numbered, publish, values
from microflow.errors import TransportError
from microflow.ports import Bounds, Record, TopicPartition
from microflow.transports.local import LocalTransport
from microflow.transports.local.format import FORMAT
from tests.asynchronous import asynchronous
from tests.transports.virtual_clock import VirtualClock

ZERO, ONE = TopicPartition("topic", 0), TopicPartition("topic", 1)
DAY = timedelta(days=1)


@contextlib.asynccontextmanager
async def opened(
    path: Path, *, clock: VirtualClock | None = None, memory: bool = False, partitions: int = 6
) -> AsyncIterator[LocalTransport]:
    transport = LocalTransport.open(
        path, clock=clock or VirtualClock(), memory=memory, session_timeout=None, partitions=partitions
    )
    try:
        yield transport
    finally:
        await transport.close()


async def stored(log: LocalTransport) -> list[Record]:
    """All records, by partition and offset, without any time passing."""
    partitions = (await log.topics.describe(["topic"]))["topic"].partitions
    bounds = await log.topics.bounds([TopicPartition("topic", each) for each in range(partitions)])
    async with member_of(log, ["topic"], group=None) as reader:
        records = await reader.collect(sum(each.end - each.beginning for each in bounds.values()))
    return sorted(records, key=lambda record: (record.partition, record.offset))


def refusal(path: Path) -> str:
    with pytest.raises(TransportError) as refused:
        LocalTransport.open(path, clock=VirtualClock())
    return str(refused.value)


@asynchronous
async def test_a_file_of_a_newer_format_is_refused_with_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "log.db"
    async with opened(path):
        pass
    with contextlib.closing(sqlite3.connect(path)) as newer:
        newer.execute("update microflow_log set format = ?", (FORMAT + 1,))
        newer.commit()

    text = refusal(path)

    assert f"format {FORMAT + 1}" in text
    assert "newer microflow" in text
    assert "same version" in text


def test_a_file_that_is_no_database_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "log.db"
    path.write_text("dear diary, " * 1000)

    assert "not a database" in refusal(path)
    assert path.read_text() == "dear diary, " * 1000


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    assert str(tmp_path / "file") in refusal(tmp_path / "file" / "log.db")


@pytest.mark.skipif(os.getuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)

    assert str(tmp_path) in refusal(tmp_path / "log.db")


def test_a_database_of_somebody_else_is_not_harmed(tmp_path: Path) -> None:
    path = tmp_path / "log.db"
    with contextlib.closing(sqlite3.connect(path)) as other:
        other.execute("create table theirs (x)")
        other.execute("insert into theirs values (1)")
        other.commit()

    async def use() -> None:
        async with opened(path) as log:
            await publish(log, *numbered("topic", 1))

    asyncio.run(use())
    with contextlib.closing(sqlite3.connect(path)) as other:
        assert other.execute("select * from theirs").fetchall() == [(1,)]


@asynchronous
async def test_a_full_disk_fails_what_is_published_and_loses_nothing_else(tmp_path: Path) -> None:
    async with opened(tmp_path / "log.db") as log:
        await publish(log, *numbered("topic", 3))
        writer = log._database.writer
        pages = writer.execute("pragma page_count").fetchone()[0]
        writer.execute(f"pragma max_page_count = {pages + 5}")

        errors = await log.publish(numbered("topic", 10_000, first=3))

        assert all(isinstance(error, TransportError) for error in errors)
        assert "full" in str(errors[0])
        assert values(await stored(log)) == [0, 1, 2]
        await publish(log, *numbered("topic", 2, first=3))
        assert values(await stored(log)) == [0, 1, 2, 3, 4]


@asynchronous
async def test_a_file_that_was_deleted_takes_nothing_any_more(tmp_path: Path) -> None:
    async with opened(tmp_path / "log.db") as log:
        await publish(log, *numbered("topic", 1))
        for name in ("log.db", "log.db-wal", "log.db-shm"):
            os.unlink(tmp_path / name)

        (error,) = await log.publish(numbered("topic", 1))

        assert isinstance(error, TransportError)
        assert "gone" in str(error)


@asynchronous
async def test_a_damaged_file_is_told_of(tmp_path: Path) -> None:
    path = tmp_path / "log.db"
    async with opened(path) as log:
        await publish(log, *numbered("topic", 5000))
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * (size - 4096))

    with pytest.raises(TransportError, match="malformed"):
        async with opened(path) as log:
            await stored(log)


def test_a_log_in_memory_is_gone_with_its_last_handle() -> None:
    async def use() -> Path:
        async with opened(Path("log.db"), memory=True) as one, opened(Path("log.db"), memory=True) as another:
            await publish(one, *numbered("topic", 1))
            assert await another.topics.describe() == {}
            async with opened(one.path) as second_handle:
                assert values(await stored(second_handle)) == [0]
            return one.path

    path = asyncio.run(use())

    assert not path.parent.exists()
    assert not Path("log.db").exists()


@asynchronous
async def test_a_handle_creates_topics_with_its_own_partition_count(tmp_path: Path) -> None:
    path = tmp_path / "log.db"
    async with opened(path, partitions=2) as log, opened(path, partitions=9) as other:
        await log.topics.ensure(["small"])
        await publish(other, *numbered("large", 1, partition=8))

        described = await other.topics.describe(["small", "large"])
        (error,) = await other.publish(numbered("small", 1, partition=2))

    assert {name: topic.partitions for name, topic in described.items()} == {"small": 2, "large": 9}
    assert "only 0 to 1" in str(error)


@asynchronous
async def test_records_go_bit_by_bit_when_they_are_older_than_the_retention(tmp_path: Path) -> None:
    clock = VirtualClock()
    async with opened(tmp_path / "log.db", clock=clock) as log:
        await publish(log, *numbered("topic", 5000))
        await clock.advance(6 * DAY)
        await publish(log, *numbered("topic", 2, first=5000), *numbered("topic", 1, partition=1))
        assert await log.topics.bounds([ZERO]) == {ZERO: Bounds(0, 5002)}
        await clock.advance(2 * DAY)

        beginnings = []
        for number in range(5):
            await publish(log, *numbered("topic", 1, first=5002 + number))
            beginnings.append((await log.topics.bounds([ZERO]))[ZERO].beginning)

        assert beginnings == [2000, 4000, 5000, 5000, 5000]
        assert (await log.topics.bounds([ONE]))[ONE] == Bounds(0, 1)
        assert values(await stored(log), partition=0) == list(range(5000, 5007))
        await clock.advance(30 * DAY)
        await log.delete_expired()
        assert await log.topics.bounds([ZERO, ONE]) == {ZERO: Bounds(5007, 5007), ONE: Bounds(1, 1)}
        assert await log.topics.offsets_at([ZERO], clock.now() - 50 * DAY) == {ZERO: 5007}


@asynchronous
async def test_timestamps_of_a_partition_never_go_back_though_the_clock_does(tmp_path: Path) -> None:
    clock = VirtualClock()
    async with opened(tmp_path / "log.db", clock=clock) as log:
        for number, step in enumerate([0, 10, 5, 20]):
            clock.step = timedelta(seconds=step)
            await publish(log, *numbered("topic", 1, first=number))

        seconds = [each.timestamp.second for each in await stored(log) if each.timestamp]
        start = clock.now() - timedelta(seconds=20)

        assert seconds == [0, 10, 10, 20]
        for second, offset in {0: 0, 1: 1, 10: 1, 11: 3, 20: 3, 21: 4}.items():
            assert await log.topics.offsets_at([ZERO], start + timedelta(seconds=second)) == {ZERO: offset}


@asynchronous
async def test_publishing_waits_for_another_process_without_holding_up_the_loop(tmp_path: Path) -> None:
    clock = VirtualClock()
    async with opened(tmp_path / "log.db", clock=clock) as log:
        await publish(log, *numbered("topic", 1))
        with contextlib.closing(sqlite3.connect(log.path, isolation_level=None)) as other:
            other.execute("begin immediate")
            publishing = asyncio.ensure_future(log.publish(numbered("topic", 1, first=1)))
            await clock.advance(timedelta(seconds=1))
            assert values(await stored(log)) == [0]
            assert not publishing.done()
            other.execute("rollback")
            await clock.advance(timedelta(seconds=1))

            assert await publishing == [None]


@asynchronous
async def test_publishing_gives_up_on_a_lock_that_is_never_free(tmp_path: Path) -> None:
    clock = VirtualClock()
    async with opened(tmp_path / "log.db", clock=clock) as log:
        with contextlib.closing(sqlite3.connect(log.path, isolation_level=None)) as other:
            other.execute("begin immediate")
            publishing = asyncio.ensure_future(log.publish(numbered("topic", 1)))
            while not publishing.done():
                await clock.advance(timedelta(seconds=1))

    (error,) = publishing.result()
    assert "locked" in str(error)
