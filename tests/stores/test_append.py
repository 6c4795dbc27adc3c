"""An event from outside a handler is committed with the caller's own transaction, or not at all."""

# ruff: noqa: ASYNC220 - starting another program is the subject

from __future__ import annotations

import asyncio
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, create_engine
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession, create_async_engine
from sqlalchemy.orm import Session

from microflow.conformance.stores.examples import an_outbox_row
from microflow.errors import MicroflowError, SqlError, StoreUnavailable
from microflow.stores.sqlite import SqliteStore, append_async, append_sync
from tests.asynchronous import asynchronous
from tests.stores.opened import opened


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    engine = create_engine(f"sqlite:///{tmp_path / 'shop.db'}")
    yield engine
    engine.dispose()


@asynccontextmanager
async def asynchronous_engine(path: Path) -> AsyncIterator[AsyncEngine]:
    engine = create_async_engine(f"sqlite+aiosqlite:///{path}")
    try:
        yield engine
    finally:
        await engine.dispose()


@asynccontextmanager
async def shop(path: Path) -> AsyncIterator[SqliteStore]:
    async with opened(path) as store:
        async with store.transaction() as transaction:
            await transaction.connection.execute("create table orders (id text)")
        yield store


async def emitted(store: SqliteStore) -> list[bytes | None]:
    return [row.value for row in await store.outbox.pending(after=0, limit=100)]


@asynchronous
async def test_a_row_is_committed_with_the_callers_transaction(tmp_path: Path) -> None:
    async with shop(tmp_path / "shop.db") as store:
        caller = sqlite3.connect(store.path)
        caller.execute("insert into orders values ('o1')")
        append_sync(caller, "web", an_outbox_row(1))
        assert await emitted(store) == []

        caller.commit()
        caller.close()

        assert await emitted(store) == [b"1"]


@asynchronous
async def test_a_row_is_rolled_back_with_the_callers_transaction(tmp_path: Path) -> None:
    async with shop(tmp_path / "shop.db") as store:
        caller = sqlite3.connect(store.path)
        append_sync(caller, "web", an_outbox_row(1))
        with pytest.raises(sqlite3.OperationalError), caller:
            caller.execute("insert into nowhere values ('o1')")
        append_sync(caller, "web", an_outbox_row(2))
        caller.rollback()
        caller.close()

        assert await emitted(store) == []


@asynchronous
async def test_a_connection_in_autocommit_mode_commits_a_row_at_once(tmp_path: Path) -> None:
    async with shop(tmp_path / "shop.db") as store:
        caller = sqlite3.connect(store.path, isolation_level=None)
        append_sync(caller, "web", an_outbox_row(1))
        caller.execute("begin")
        append_sync(caller, "web", an_outbox_row(2))
        caller.execute("rollback")
        caller.close()

        assert await emitted(store) == [b"1"]


@asynchronous
async def test_rows_from_outside_and_from_handlers_are_in_commit_order(tmp_path: Path) -> None:
    async with shop(tmp_path / "shop.db") as store:
        caller = sqlite3.connect(store.path, isolation_level=None)
        append_sync(caller, "web", an_outbox_row(1))
        async with store.transaction() as transaction:
            await append_async(transaction.connection, "web", an_outbox_row(2))
        append_sync(caller, "web", an_outbox_row(3))
        caller.close()

        assert await emitted(store) == [b"1", b"2", b"3"]


class AwaitableDriver:
    """As aiosqlite: a thread of its own, and an `execute` that is awaited."""

    def __init__(self, path: Path) -> None:
        self._connection = sqlite3.connect(path, check_same_thread=False)

    async def execute(self, sql: str, parameters: Any = ()) -> sqlite3.Cursor:
        return await asyncio.to_thread(self._connection.execute, sql, parameters)

    async def commit(self) -> None:
        await asyncio.to_thread(self._connection.commit)

    async def close(self) -> None:
        await asyncio.to_thread(self._connection.close)


@asynchronous
async def test_an_awaited_driver_takes_a_row_too(tmp_path: Path) -> None:
    async with shop(tmp_path / "shop.db") as store:
        caller = AwaitableDriver(store.path)
        await append_async(caller, "web", an_outbox_row(1))
        assert await emitted(store) == []
        await caller.commit()
        await append_async(caller, "web", an_outbox_row(2))
        await caller.close()

        assert await emitted(store) == [b"1"]


@pytest.mark.parametrize("kind", [Connection, Session])
def test_what_is_appended_through_sqlalchemy_ends_with_its_transaction(
    tmp_path: Path, engine: Engine, kind: Callable[[Engine], Any]
) -> None:
    """Rule 21: "through SQLAlchemy, never around it"."""

    async def scenario() -> None:
        async with shop(tmp_path / "shop.db") as store:
            with kind(engine) as caller:
                append_sync(caller, "web", an_outbox_row(1))
                caller.rollback()
                append_sync(caller, "web", an_outbox_row(2))
                await append_async(caller, "web", an_outbox_row(3))
                assert await emitted(store) == []
                caller.commit()
                append_sync(caller, "web", an_outbox_row(4))

            assert await emitted(store) == [b"2", b"3"]

    asyncio.run(scenario())


@pytest.mark.parametrize("kind", [AsyncConnection, AsyncSession])
def test_what_is_appended_through_asynchronous_sqlalchemy_ends_with_its_transaction(
    tmp_path: Path, kind: Callable[[AsyncEngine], Any]
) -> None:
    """Rule 21."""

    async def scenario() -> None:
        async with shop(tmp_path / "shop.db") as store, asynchronous_engine(store.path) as engine:
            async with kind(engine) as caller:
                await append_async(caller, "web", an_outbox_row(1))
                await caller.rollback()
                await append_async(caller, "web", an_outbox_row(2))
                assert await emitted(store) == []
                await caller.commit()
                with pytest.raises(MicroflowError, match="no connection that an outbox can write on"):
                    append_sync(caller, "web", an_outbox_row(3))

            assert await emitted(store) == [b"2"]

    asyncio.run(scenario())


def test_an_error_behind_sqlalchemy_is_told_like_any_other(engine: Engine) -> None:
    with Session(engine) as caller, pytest.raises(SqlError, match="has no outbox"):
        append_sync(caller, "web", an_outbox_row(1))


@asynchronous
async def test_a_handlers_connection_takes_a_row_too_and_undoes_it_with_the_rest(tmp_path: Path) -> None:
    async with shop(tmp_path / "shop.db") as store:
        async with store.transaction() as transaction:
            connection = transaction.connection
            await append_async(connection, "web", an_outbox_row(1))
            with pytest.raises(KeyError):
                await append_and_raise(connection)

        assert await emitted(store) == [b"1"]


async def append_and_raise(connection: Any) -> None:
    async with connection.savepoint():
        await append_async(connection, "web", an_outbox_row(2))
        raise KeyError


@asynchronous
async def test_a_database_without_an_outbox_is_told_with_what_to_type(tmp_path: Path) -> None:
    caller = sqlite3.connect(tmp_path / "empty.db")
    driver = AwaitableDriver(tmp_path / "empty.db")

    for appending in (append_async(driver, "web", an_outbox_row(1)), as_async(caller)):
        with pytest.raises(SqlError, match="has no outbox") as error:
            await appending
        assert error.value.fix
        assert "microflow" in error.value.fix
    caller.close()
    await driver.close()


async def as_async(caller: sqlite3.Connection) -> None:
    append_sync(caller, "web", an_outbox_row(1))


@asynchronous
async def test_a_locked_database_is_unavailable(tmp_path: Path) -> None:
    async with shop(tmp_path / "shop.db") as store:
        caller = sqlite3.connect(store.path, timeout=0)
        async with store.transaction():
            with pytest.raises(StoreUnavailable):
                append_sync(caller, "web", an_outbox_row(1))
        caller.close()


ANOTHER_PROCESS = """
import sqlite3, sys
from microflow.conformance.stores.examples import an_outbox_row
from microflow.stores.sqlite import append_sync
caller = sqlite3.connect(sys.argv[1])
append_sync(caller, "web", an_outbox_row(7))
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
        append_sync(caller, "web", an_outbox_row(0))
        caller.commit()

        caller.executemany("insert into orders values (?)", [("x" * 4000,)] * 4000)  # far beyond SQLite's 1000 pages
        caller.commit()

        written = (tmp_path / "shop.db").stat().st_size
        assert written < 1_000_000, "what the caller wrote is in the write-ahead log, and nowhere else"
        caller.close()
