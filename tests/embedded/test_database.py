"""One SQLite file, several processes: the write lock, its holder, checkpoints, and a disk that says no."""

# ruff: noqa: ASYNC240 - the files are the tests' own, and nobody else is in the loop

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from microflow.clocks import SystemClock
from microflow.embedded import database as database_module
from microflow.embedded.database import CHECKPOINT_WHEN_WAL_HAS, Database
from microflow.errors import SqlError, StoreUnavailable, UniqueViolation
from tests.asynchronous import asynchronous
from tests.embedded.full_disk import no_file_may_grow_beyond

SECOND = timedelta(seconds=1)


@contextlib.asynccontextmanager
async def opened(path: Path, *, memory: bool = False) -> AsyncIterator[Database]:
    database = Database.open(path, clock=SystemClock(), memory=memory)
    try:
        yield database
    finally:
        database.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "shop.db"


class WriterProcess:
    def __init__(self, path: Path, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.embedded.writer_process", str(path), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def says(self, word: str) -> None:
        assert self.process.stdout is not None
        assert self.process.stdout.readline().strip() == word

    def go_on(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()


@contextlib.contextmanager
def process(path: Path, *arguments: str) -> Iterator[WriterProcess]:
    writer = WriterProcess(path, *arguments)
    try:
        yield writer
    finally:
        writer.process.kill()
        writer.process.communicate()


async def insert(database: Database, value: int = 1, *, patience: timedelta | None = None) -> None:
    async with database.writing(patience=patience) as connection:
        connection.execute("create table if not exists kept (id integer primary key)")
        connection.execute("insert into kept values (?)", (value,))


def kept(database: Database) -> list[int]:
    return [row[0] for row in database.read("select id from kept order by id")]


# ── opening ───────────────────────────────────────────────────────────────────────────────────────────────────────


@asynchronous
async def test_everybody_in_the_process_who_opens_a_file_gets_the_same_object(path: Path) -> None:
    async with opened(path) as first, opened(path.parent / "." / "shop.db") as second:
        assert first is second

    async with opened(path) as third:
        assert third is not first


@asynchronous
async def test_another_thread_has_connections_of_its_own(path: Path) -> None:
    found: list[Database] = []

    async def open_and_write() -> None:
        async with opened(path) as database:
            found.append(database)
            await insert(database, 2)

    async with opened(path) as here:
        await insert(here, 1)
        thread = threading.Thread(target=asyncio.run, args=(open_and_write(),))
        thread.start()
        await asyncio.to_thread(thread.join)

        assert found[0] is not here
        assert kept(here) == [1, 2]


@asynchronous
async def test_a_commit_is_synced_and_foreign_keys_are_checked(path: Path) -> None:
    async with opened(path) as database:
        pragmas = [database.writer.execute(f"pragma {name}").fetchone()[0] for name in PRAGMAS]

    assert pragmas == list(PRAGMAS.values())


PRAGMAS = {
    "journal_mode": "wal",
    "synchronous": 2,
    "foreign_keys": 1,
    "wal_autocheckpoint": 0,
    "busy_timeout": 0,
}


@asynchronous
async def test_whatever_becomes_of_a_commit_that_is_not_synced_the_next_one_is(path: Path) -> None:
    def level(database: Database) -> int:
        return int(database.writer.execute("pragma synchronous").fetchone()[0])

    async with opened(path) as database:
        async with database.writing(synced=False) as connection:
            connection.execute("create table things (name text)")
            assert level(database) == 1  # normal
        assert level(database) == 2  # full

        with pytest.raises(SqlError):
            async with database.writing(synced=False) as connection:
                connection.execute("insert into nothing values (1)")
        assert level(database) == 2

        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("begin immediate")
            with pytest.raises(StoreUnavailable):
                async with database.writing(synced=False, patience=timedelta(0)):
                    pass
        assert level(database) == 2


@asynchronous
async def test_a_file_in_memory_is_gone_when_all_have_closed_it() -> None:
    async with opened(Path("log.db"), memory=True) as database:
        await insert(database)
        assert kept(database) == [1]
        async with opened(database.path) as same:
            assert same is database
        assert database.path.exists()

    assert not database.path.parent.exists()


@asynchronous
async def test_missing_folders_are_made(tmp_path: Path) -> None:
    async with opened(tmp_path / "a" / "b" / "shop.db") as database:
        await insert(database)


def test_a_file_that_is_no_database_is_refused_with_what_to_do(path: Path) -> None:
    path.write_bytes(b"order_id,total\n" * 1000)

    with pytest.raises(StoreUnavailable) as error:
        Database.open(path, clock=SystemClock())

    assert str(path) in str(error.value)
    assert error.value.why == "The file is no SQLite database."
    assert error.value.fix
    assert path.read_bytes() == b"order_id,total\n" * 1000


def test_a_folder_in_place_of_the_file_is_refused_with_what_to_do(path: Path) -> None:
    path.mkdir()

    with pytest.raises(StoreUnavailable) as error:
        Database.open(path, clock=SystemClock())

    assert error.value.fix


def test_a_file_in_place_of_the_folder_is_refused_with_what_to_do(path: Path) -> None:
    path.write_text("")

    with pytest.raises(StoreUnavailable) as error:
        Database.open(path / "shop.db", clock=SystemClock())

    assert error.value.fix


READ_ONLY = """
import asyncio, os, sys
from pathlib import Path
from microflow.clocks import SystemClock
from microflow.embedded.database import Database
from microflow.errors import StoreUnavailable
if os.getuid() == 0:
    os.setuid(65534)
try:
    Database.open(Path(sys.argv[1]), clock=SystemClock())
except StoreUnavailable as error:
    print(error)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="uses the user `nobody`")
def test_a_folder_that_may_not_be_written_is_refused_with_what_to_do() -> None:
    # Not in pytest's own folder: `nobody` may not even look into that.
    folder = Path("/tmp") / f"microflow-read-only-{os.getpid()}"
    folder.mkdir()
    try:
        folder.chmod(stat.S_IRUSR | stat.S_IXUSR | stat.S_IROTH | stat.S_IXOTH)
        command = [sys.executable, "-c", READ_ONLY, str(folder / "shop.db")]
        told = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    finally:
        folder.chmod(stat.S_IRWXU)
        folder.rmdir()

    if "Permission" in told.stderr or "ModuleNotFound" in told.stderr:
        pytest.skip("nobody may not read this checkout")
    assert "Cannot open the database" in told.stdout, told.stderr
    assert "folder exists and may be written" in told.stdout


# ── the write lock ────────────────────────────────────────────────────────────────────────────────────────────────


@asynchronous
async def test_a_block_that_raises_is_rolled_back(path: Path) -> None:
    async with opened(path) as database:
        await insert(database, 1)

        async def fail() -> None:
            async with database.writing() as connection:
                connection.execute("insert into kept values (2)")
                raise KeyError

        with pytest.raises(KeyError):
            await fail()

        await insert(database, 3)
        assert kept(database) == [1, 3]


@asynchronous
async def test_a_cancelled_block_is_rolled_back(path: Path) -> None:
    async with opened(path) as database:
        await insert(database, 1)
        inside = asyncio.Event()

        async def wait_inside() -> None:
            async with database.writing() as connection:
                connection.execute("insert into kept values (2)")
                inside.set()
                await asyncio.Event().wait()

        task = asyncio.create_task(wait_inside())
        await inside.wait()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

        await insert(database, 3)
        assert kept(database) == [1, 3]


@asynchronous
async def test_tasks_of_one_process_write_one_after_another(path: Path) -> None:
    async with opened(path) as database:
        inside = 0

        async def write(value: int) -> None:
            nonlocal inside
            async with database.writing() as connection:
                inside += 1
                assert inside == 1
                connection.execute("create table if not exists kept (id integer primary key)")
                await asyncio.sleep(0)
                connection.execute("insert into kept values (?)", (value,))
                inside -= 1

        await asyncio.gather(*(write(value) for value in range(20)))

        assert kept(database) == list(range(20))


@asynchronous
async def test_errors_of_sqlite_inside_are_store_errors(path: Path) -> None:
    async with opened(path) as database:
        await insert(database, 1)

        with pytest.raises(UniqueViolation):
            await insert(database, 1)
        with pytest.raises(SqlError):
            async with database.writing() as connection:
                connection.execute("selekt")
        with pytest.raises(SqlError):
            database.read("select missing from kept")


@asynchronous
async def test_an_error_of_the_commit_itself_leaves_the_connection_usable(path: Path) -> None:
    async with opened(path) as database:
        async with database.writing() as connection:
            connection.execute("create table parent (id integer primary key)")
            connection.execute("create table child (id integer references parent deferrable initially deferred)")

        with pytest.raises(Exception, match="FOREIGN KEY") as error:
            async with database.writing() as connection:
                connection.execute("insert into child values (1)")

        assert type(error.value).__module__ == "microflow.errors"
        await insert(database)
        assert database.read("select * from child") == []


@asynchronous
async def test_somebody_who_waits_is_told_the_holders_pid(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with process(path, "hold") as other:
        other.says("holding")
        async with opened(path) as database:
            assert database.holder() == other.process.pid
            with pytest.raises(StoreUnavailable, match=f"process {other.process.pid}"):
                await insert(database, patience=SECOND / 10)

            with caplog.at_level(logging.WARNING, logger="microflow"):
                waiting = asyncio.create_task(insert(database))
                await asyncio.wait([waiting], timeout=2.5)
                assert not waiting.done()
                other.go_on()
                await asyncio.wait_for(waiting, 10)

            assert kept(database) == [1]
            assert database.read("select count(*) from held") == [(1,)]
            assert database.holder() is None
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == 1, "it is said once"
    assert str(other.process.pid) in told[0]


@asynchronous
async def test_a_process_stopped_inside_a_transaction_is_named_and_waited_for(path: Path) -> None:
    with process(path, "hold") as other:
        other.says("holding")
        os.kill(other.process.pid, signal.SIGSTOP)
        async with opened(path) as database:
            with pytest.raises(StoreUnavailable, match=f"process {other.process.pid}"):
                await insert(database, patience=SECOND / 10)
            assert database.read("select count(*) from sqlite_master where name = 'held'") == [(0,)], "reading goes on"

            os.kill(other.process.pid, signal.SIGCONT)
            other.go_on()
            other.says("committed")
            await insert(database)
            assert kept(database) == [1]


@asynchronous
async def test_a_process_killed_inside_a_transaction_leaves_nothing_behind(path: Path) -> None:
    with process(path, "hold") as other:
        other.says("holding")
        async with opened(path) as database:
            waiting = asyncio.create_task(insert(database))
            await asyncio.wait([waiting], timeout=0.1)
            assert not waiting.done()

            other.process.kill()
            other.process.wait()

            await asyncio.wait_for(waiting, 10)
            assert kept(database) == [1]
            assert database.read("select count(*) from sqlite_master where name = 'held'") == [(0,)]


@asynchronous
async def test_waiting_for_another_process_does_not_block_the_loop(path: Path) -> None:
    with process(path, "hold") as other:
        other.says("holding")
        async with opened(path) as database:
            waiting = asyncio.create_task(insert(database))
            longest = 0.0
            for _ in range(100):
                started = time.perf_counter()
                await asyncio.sleep(0.001)
                longest = max(longest, time.perf_counter() - started)
            assert not waiting.done()
            assert longest < 0.5
            other.go_on()
            await asyncio.wait_for(waiting, 10)


@asynchronous
async def test_two_connections_of_one_process_wait_for_each_other_too(path: Path) -> None:
    async with opened(path) as database:
        await insert(database, 1)
        users_own = sqlite3.connect(path, isolation_level=None)
        users_own.execute("begin immediate")
        waiting = asyncio.create_task(insert(database, 2))
        with pytest.raises(StoreUnavailable, match="another connection"):
            await _probe(database)

        users_own.execute("commit")
        users_own.close()
        await asyncio.wait_for(waiting, 10)

        assert kept(database) == [1, 2]


async def _probe(database: Database) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(database_module, "PATIENCE_OF_PROBE", SECOND / 20)
        await database.probe("select 1")


# ── when the disk says no ─────────────────────────────────────────────────────────────────────────────────────────


@asynchronous
async def test_a_full_database_rolls_back_and_works_again_when_there_is_space(path: Path) -> None:
    async with opened(path) as database:
        await insert(database)
        pages = database.writer.execute("pragma page_count").fetchone()[0]
        database.writer.execute(f"pragma max_page_count = {pages}")

        with pytest.raises(StoreUnavailable, match="full") as error:
            async with database.writing() as connection:
                connection.execute("create table large as select zeroblob(100000) as content")

        assert error.value.why == "The disk is full."
        await insert(database, 2)
        assert kept(database) == [1, 2]
        assert database.read("pragma integrity_check") == [("ok",)]


@asynchronous
async def test_a_write_that_fails_in_the_commit_is_an_error_and_nothing_is_there(path: Path) -> None:
    async with opened(path) as database:
        await insert(database, 1)
        size = path.with_name("shop.db-wal").stat().st_size

        with no_file_may_grow_beyond(size):
            with pytest.raises(StoreUnavailable):
                await insert(database, 2)
            with pytest.raises(StoreUnavailable):
                await database.probe("insert into kept values (3)")
            assert kept(database) == [1]

        await database.probe("insert into kept values (4)")
        await insert(database, 5)
        assert kept(database) == [1, 4, 5]
        assert database.read("pragma integrity_check") == [("ok",)]


@asynchronous
async def test_a_broken_write_connection_is_replaced(path: Path) -> None:
    async with opened(path) as database:
        await insert(database, 1)
        broken = database.writer

        with no_file_may_grow_beyond(path.with_name("shop.db-wal").stat().st_size):
            for _ in range(3):
                with pytest.raises(StoreUnavailable):
                    await insert(database, 2)

        await insert(database, 3)
        assert database.writer is not broken
        assert kept(database) == [1, 3]


@asynchronous
async def test_a_deleted_or_replaced_file_fails_the_probe(path: Path) -> None:
    async with opened(path) as database:
        await insert(database, 1)
        path.rename(path.with_name("gone.db"))

        with pytest.raises(StoreUnavailable, match="gone"):
            await database.probe("select 1")
        path.write_bytes(b"")
        with pytest.raises(StoreUnavailable, match="replaced"):
            await database.probe("select 1")


@asynchronous
async def test_a_damaged_file_is_unavailable_and_not_a_wrong_statement(path: Path) -> None:
    async with opened(path) as database:
        async with database.writing() as connection:
            connection.execute("create table large as select randomblob(200000) as content")
        database.writer.execute("pragma wal_checkpoint(truncate)")
    content = bytearray(path.read_bytes())
    content[4096:] = b"\xff" * (len(content) - 4096)
    path.write_bytes(content)

    async with opened(path) as database:
        with pytest.raises(StoreUnavailable) as error:
            database.read("select * from large")

    assert error.value.transient
    assert error.value.fix


# ── reading ───────────────────────────────────────────────────────────────────────────────────────────────────────


@asynchronous
async def test_statements_of_one_reading_see_the_same_commits(path: Path) -> None:
    async with opened(path) as database:
        await insert(database, 1)
        other = sqlite3.connect(path, isolation_level=None)

        with database.reading() as connection:
            before = connection.execute("select count(*) from kept").fetchone()
            other.execute("insert into kept values (2)")
            after = connection.execute("select count(*) from kept").fetchone()

        other.close()
        assert before == after
        assert kept(database) == [1, 2]


@asynchronous
async def test_the_reader_cannot_write(path: Path) -> None:
    async with opened(path) as database:
        await insert(database, 1)

        with pytest.raises(StoreUnavailable, match="readonly"):
            database.read("delete from kept")


@asynchronous
async def test_a_reading_that_raises_leaves_the_reader_usable(path: Path) -> None:
    async with opened(path) as database:
        await insert(database, 1)

        with pytest.raises(SqlError), database.reading() as connection:
            connection.execute("selekt")

        with database.reading():
            pass
        assert kept(database) == [1]


# ── checkpoints ───────────────────────────────────────────────────────────────────────────────────────────────────


def wal_size(path: Path) -> int:
    return path.with_name(f"{path.name}-wal").stat().st_size


async def write_megabyte(database: Database) -> None:
    async with database.writing() as connection:
        connection.execute("create table if not exists large (content blob)")
        connection.execute("insert into large values (zeroblob(1000000))")


@asynchronous
async def test_the_write_ahead_log_is_emptied_before_it_is_large(path: Path) -> None:
    async with opened(path) as database:
        sizes = []
        for _ in range(12):
            await write_megabyte(database)
            sizes.append(wal_size(path))

    assert max(sizes) < CHECKPOINT_WHEN_WAL_HAS + 1_100_000
    assert sizes.count(0) >= 2


@asynchronous
async def test_a_process_that_checkpoints_keeps_the_others_from_it(path: Path) -> None:
    async with opened(path) as database:
        other = os.open(f"{path}-checkpoint", os.O_RDWR | os.O_CREAT)
        fcntl.flock(other, fcntl.LOCK_EX)
        for _ in range(6):
            await write_megabyte(database)
        assert wal_size(path) > 6_000_000, "it let the other one do it"

        os.close(other)
        await write_megabyte(database)

        assert wal_size(path) == 0


@asynchronous
async def test_a_reader_of_an_old_state_puts_a_checkpoint_off(path: Path) -> None:
    async with opened(path) as database:
        await write_megabyte(database)
        old = sqlite3.connect(path, isolation_level=None)
        old.execute("begin")
        old.execute("select count(*) from large").fetchone()
        for _ in range(6):
            await write_megabyte(database)
        assert wal_size(path) > 6_000_000

        old.execute("commit")
        old.close()
        for _ in range(4):
            await write_megabyte(database)

        assert wal_size(path) < 3_000_000


@asynchronous
async def test_processes_that_write_and_checkpoint_at_once_lose_nothing(path: Path) -> None:
    rows = 400
    with process(path, str(rows), "a") as first, process(path, str(rows), "b") as second:
        for writer in (first, second):
            writer.says("ready")
        for writer in (first, second):
            writer.go_on()
        for writer in (first, second):
            await asyncio.to_thread(writer.says, "done")

        async with opened(path) as database:
            found: list[Any] = database.read("select process, count(*), max(number) from written group by process")
            assert found == [("a", rows, rows - 1), ("b", rows, rows - 1)]
            assert database.read("pragma integrity_check") == [("ok",)]
    assert path.stat().st_size > 2 * rows * 20_000 * 0.5, "it was checkpointed while both wrote"
