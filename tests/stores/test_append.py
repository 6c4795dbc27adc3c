"""Appending on SQLite: what is its own there. That every library's transaction takes the event is in test_callers."""

# ruff: noqa: ASYNC220 - starting another program is the subject

from __future__ import annotations

import asyncio
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path

import pytest

from microflow.conformance.stores.examples import an_outbox_row
from microflow.connect import append_to, append_to_sync
from microflow.stores.sqlite import SqliteStore
from tests.asynchronous import asynchronous
from tests.stores.opened import opened


@asynccontextmanager
async def shop(path: Path) -> AsyncIterator[SqliteStore]:
    async with opened(path) as store:
        async with store.transaction() as transaction:
            await transaction.connection.execute("create table orders (id text)")
        yield store


async def emitted(store: SqliteStore) -> list[bytes | None]:
    return [row.value for row in await store.outbox.pending(after=0, limit=100)]


@asynchronous
async def test_a_connection_in_autocommit_mode_commits_a_row_at_once(tmp_path: Path) -> None:
    async with shop(tmp_path / "shop.db") as store:
        caller = sqlite3.connect(store.path, isolation_level=None)
        append_to_sync(caller, "web", [an_outbox_row(1)])
        caller.execute("begin")
        append_to_sync(caller, "web", [an_outbox_row(2)])
        caller.execute("rollback")
        caller.close()

        assert await emitted(store) == [b"1"]


@asynchronous
async def test_rows_from_outside_and_from_handlers_are_in_commit_order(tmp_path: Path) -> None:
    async with shop(tmp_path / "shop.db") as store:
        caller = sqlite3.connect(store.path, isolation_level=None)
        append_to_sync(caller, "web", [an_outbox_row(1)])
        async with store.transaction() as transaction:
            await append_to(transaction.connection, "web", [an_outbox_row(2)])
        append_to_sync(caller, "web", [an_outbox_row(3)])
        caller.close()

        assert await emitted(store) == [b"1", b"2", b"3"]


@asynchronous
async def test_a_locked_database_is_told_by_the_callers_own_library(tmp_path: Path) -> None:
    async with shop(tmp_path / "shop.db") as store, store.transaction():
        with closing(sqlite3.connect(store.path, timeout=0)) as caller, pytest.raises(sqlite3.OperationalError):
            append_to_sync(caller, "web", [an_outbox_row(1)])


ANOTHER_PROCESS = """
import sqlite3, sys
from microflow.conformance.stores.examples import an_outbox_row
from microflow.connect import append_to_sync
caller = sqlite3.connect(sys.argv[1])
append_to_sync(caller, "web", [an_outbox_row(7)])
sys.stdin.readline()
caller.commit()
"""


@asynchronous
async def test_a_waiting_relay_notices_a_row_of_another_program(tmp_path: Path) -> None:
    async with shop(tmp_path / "shop.db") as store:
        await store.outbox.changed()
        waiting = asyncio.create_task(store.outbox.changed())
        with subprocess.Popen([sys.executable, "-c", ANOTHER_PROCESS, str(store.path)], stdin=subprocess.PIPE) as other:
            await asyncio.wait([waiting], timeout=0.1)
            assert not waiting.done()

            await asyncio.to_thread(other.communicate, b"\n")

            await asyncio.wait_for(waiting, 5)
        assert await emitted(store) == [b"7"]


@asynchronous
async def test_a_callers_connection_makes_no_checkpoints_beside_ours(tmp_path: Path) -> None:
    async with shop(tmp_path / "shop.db") as store:
        caller = sqlite3.connect(store.path)
        append_to_sync(caller, "web", [an_outbox_row(0)])
        caller.commit()

        caller.executemany("insert into orders values (?)", [("x" * 4000,)] * 4000)  # far beyond SQLite's 1000 pages
        caller.commit()

        written = (tmp_path / "shop.db").stat().st_size
        assert written < 1_000_000, "what the caller wrote is in the write-ahead log, and nowhere else"
        caller.close()
