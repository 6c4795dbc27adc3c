"""The callers of an outbox: every library whose connections it takes, on both databases, behind the same few verbs."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Protocol

import aiosqlite
import asyncpg
import django
import psycopg
import psycopg2
import sqlalchemy
from django.conf import settings as django_settings
from django.db.utils import ConnectionHandler
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession, create_async_engine
from sqlalchemy.orm import Session, scoped_session, sessionmaker

from microflow import Outbox
from microflow.events import Message


class Caller(Protocol):
    """A connection of some library, as its user would use it: a transaction begins with the first statement."""

    connection: Any

    async def append(self, outbox: Outbox, event: Message) -> None: ...
    async def execute(self, sql: str) -> None: ...
    async def commit(self) -> None: ...
    async def rollback(self) -> None: ...
    def savepoint(self) -> AbstractAsyncContextManager[None]:
        """Undone if the block raises."""
        ...


class Awaited:
    """psycopg's AsyncConnection and aiosqlite's: both have these verbs."""

    def __init__(self, connection: Any) -> None:
        self.connection = connection

    async def append(self, outbox: Outbox, event: Message) -> None:
        await outbox.append(self.connection, event)

    async def execute(self, sql: str) -> None:
        await self.connection.execute(sql)

    async def commit(self) -> None:
        await self.connection.commit()

    async def rollback(self) -> None:
        await self.connection.rollback()

    @asynccontextmanager
    async def savepoint(self) -> AsyncIterator[None]:
        await self.execute("savepoint one")
        try:
            yield
        except BaseException:
            await self.execute("rollback to savepoint one")
            raise
        await self.execute("release savepoint one")


class Asyncpgs(Awaited):
    """asyncpg's, which is in no transaction unless one is begun."""

    async def append(self, outbox: Outbox, event: Message) -> None:
        await self._begin()
        await super().append(outbox, event)

    async def execute(self, sql: str) -> None:
        await self._begin()
        await super().execute(sql)

    async def commit(self) -> None:
        await self.connection.execute("commit")

    async def rollback(self) -> None:
        await self.connection.execute("rollback")

    async def _begin(self) -> None:
        if not self.connection.is_in_transaction():
            await self.connection.execute("begin")


class Alchemys(Awaited):
    """SQLAlchemy's, which takes SQL as an object."""

    async def execute(self, sql: str) -> None:
        await self.connection.execute(sqlalchemy.text(sql))

    @asynccontextmanager
    async def savepoint(self) -> AsyncIterator[None]:
        async with self.connection.begin_nested():
            yield


class Blocking:
    """sqlite3's and psycopg's."""

    def __init__(self, connection: Any) -> None:
        self.connection = connection

    async def append(self, outbox: Outbox, event: Message) -> None:
        outbox.append_sync(self.connection, event)

    async def execute(self, sql: str) -> None:
        self.connection.execute(sql)

    async def commit(self) -> None:
        self.connection.commit()

    async def rollback(self) -> None:
        self.connection.rollback()

    @asynccontextmanager
    async def savepoint(self) -> AsyncIterator[None]:
        await self.execute("savepoint one")
        try:
            yield
        except BaseException:
            await self.execute("rollback to savepoint one")
            raise
        await self.execute("release savepoint one")


class WithCursors(Blocking):
    """psycopg2's and Django's."""

    async def execute(self, sql: str) -> None:
        with self.connection.cursor() as cursor:
            cursor.execute(sql)


class Djangos(WithCursors):
    """Django's, which refuses to work in a thread that has a loop."""

    def __init__(self, connection: Any, thread: Executor) -> None:
        super().__init__(connection)
        self._thread = thread

    async def append(self, outbox: Outbox, event: Message) -> None:
        await self._in_thread(outbox.append_sync, self.connection, event)

    async def execute(self, sql: str) -> None:
        await self._in_thread(self._execute, sql)

    async def commit(self) -> None:
        await self._in_thread(self.connection.commit)

    async def rollback(self) -> None:
        await self._in_thread(self.connection.rollback)

    async def _in_thread(self, call: Callable[..., None], *args: Any) -> None:
        await asyncio.get_running_loop().run_in_executor(self._thread, call, *args)

    def _execute(self, sql: str) -> None:
        with self.connection.cursor() as cursor:
            cursor.execute(sql)


class BlockingAlchemys(Blocking):
    async def execute(self, sql: str) -> None:
        self.connection.execute(sqlalchemy.text(sql))

    @asynccontextmanager
    async def savepoint(self) -> AsyncIterator[None]:
        with self.connection.begin_nested():
            yield


Opening = Callable[[str], AbstractAsyncContextManager[Caller]]


@asynccontextmanager
async def _sqlite3(url: str) -> AsyncIterator[Caller]:
    with contextlib.closing(sqlite3.connect(_path(url))) as connection:
        yield Blocking(connection)


@asynccontextmanager
async def _aiosqlite(url: str) -> AsyncIterator[Caller]:
    async with aiosqlite.connect(_path(url)) as connection:
        yield Awaited(connection)


@asynccontextmanager
async def _asyncpg(url: str) -> AsyncIterator[Caller]:
    connection = await asyncpg.connect(url)
    try:
        yield Asyncpgs(connection)
    finally:
        await connection.close()


@asynccontextmanager
async def _asyncpg_pool(url: str) -> AsyncIterator[Caller]:
    async with asyncpg.create_pool(url, min_size=1, max_size=1) as pool, pool.acquire() as connection:
        yield Asyncpgs(connection)


@asynccontextmanager
async def _psycopg(url: str) -> AsyncIterator[Caller]:
    with contextlib.closing(psycopg.connect(url)) as connection:
        yield Blocking(connection)


@asynccontextmanager
async def _psycopg_async(url: str) -> AsyncIterator[Caller]:
    connection = await psycopg.AsyncConnection.connect(url)
    try:
        yield Awaited(connection)
    finally:
        await connection.close()


@asynccontextmanager
async def _psycopg_raw_cursors(url: str) -> AsyncIterator[Caller]:
    connection = await psycopg.AsyncConnection.connect(url, cursor_factory=psycopg.AsyncRawCursor)
    try:
        yield Awaited(connection)
    finally:
        await connection.close()


@asynccontextmanager
async def _psycopg2(url: str) -> AsyncIterator[Caller]:
    with contextlib.closing(psycopg2.connect(url)) as connection:
        yield WithCursors(connection)


@asynccontextmanager
async def _django(url: str) -> AsyncIterator[Caller]:
    if not django_settings.configured:
        django_settings.configure(USE_TZ=True)
        django.setup()
    parts = sqlalchemy.make_url(url)
    database = {
        "ENGINE": f"django.db.backends.{'sqlite3' if parts.drivername == 'sqlite' else 'postgresql'}",
        "NAME": parts.database,
        "HOST": parts.host or "",
        "PORT": str(parts.port or ""),
        "USER": parts.username or "",
    }
    connection = ConnectionHandler({"default": database})["default"]
    connection.inc_thread_sharing()
    with ThreadPoolExecutor(1) as thread:
        thread.submit(connection.set_autocommit, False).result()
        try:
            yield Djangos(connection, thread)
        finally:
            thread.submit(connection.close).result()


def _alchemy(driver: str, kind: Callable[[Any], Any]) -> Opening:
    @asynccontextmanager
    async def opening(url: str) -> AsyncIterator[Caller]:
        engine = sqlalchemy.create_engine(sqlalchemy.make_url(url).set(drivername=driver))
        connection = kind(engine)
        try:
            yield BlockingAlchemys(connection)
        finally:
            connection.close()
            engine.dispose()

    return opening


def _alchemy_async(driver: str, kind: Callable[[Any], Any]) -> Opening:
    @asynccontextmanager
    async def opening(url: str) -> AsyncIterator[Caller]:
        engine = create_async_engine(sqlalchemy.make_url(url).set(drivername=driver))
        connection = kind(engine)
        try:
            if isinstance(connection, AsyncConnection):
                await connection.start()
            yield Alchemys(connection)
        finally:
            await connection.close()
            await engine.dispose()

    return opening


def _path(url: str) -> str:
    return url.removeprefix("sqlite:///")


ON_SQLITE: Mapping[str, Opening] = {
    "sqlite3": _sqlite3,
    "aiosqlite": _aiosqlite,
    "Django": _django,
    "SQLAlchemy Connection": _alchemy("sqlite", sqlalchemy.Connection),
    "SQLAlchemy Session": _alchemy("sqlite", Session),
    "SQLAlchemy scoped_session": _alchemy("sqlite", lambda engine: scoped_session(sessionmaker(engine))),
    "SQLAlchemy AsyncConnection": _alchemy_async("sqlite+aiosqlite", lambda engine: engine.connect()),
    "SQLAlchemy AsyncSession": _alchemy_async("sqlite+aiosqlite", AsyncSession),
}

ON_POSTGRES: Mapping[str, Opening] = {
    "asyncpg": _asyncpg,
    "asyncpg pool": _asyncpg_pool,
    "psycopg": _psycopg,
    "psycopg asynchronous": _psycopg_async,
    "psycopg with raw cursors": _psycopg_raw_cursors,
    "psycopg2": _psycopg2,
    "Django": _django,
    "SQLAlchemy Connection, psycopg": _alchemy("postgresql+psycopg", sqlalchemy.Connection),
    "SQLAlchemy Session, psycopg": _alchemy("postgresql+psycopg", Session),
    "SQLAlchemy Connection, psycopg2": _alchemy("postgresql+psycopg2", sqlalchemy.Connection),
    "SQLAlchemy Session, psycopg2": _alchemy("postgresql+psycopg2", Session),
    "SQLAlchemy AsyncConnection, asyncpg": _alchemy_async("postgresql+asyncpg", lambda engine: engine.connect()),
    "SQLAlchemy AsyncSession, asyncpg": _alchemy_async("postgresql+asyncpg", AsyncSession),
    "SQLAlchemy AsyncConnection, psycopg": _alchemy_async("postgresql+psycopg_async", lambda engine: engine.connect()),
    "SQLAlchemy AsyncSession, psycopg": _alchemy_async("postgresql+psycopg_async", AsyncSession),
}
