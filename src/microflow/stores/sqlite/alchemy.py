"""Sessions of SQLAlchemy on SQLite: its own dialect, run in place on the write connection of a transaction.

SQLAlchemy's asynchronous half wants a driver that is awaited. This one is aiosqlite's as far as SQLAlchemy uses that,
without its thread: nothing here ever waits, so nobody else comes between.
"""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator, Generator
from contextlib import AbstractAsyncContextManager
from typing import Any

from sqlalchemy.dialects import registry
from sqlalchemy.dialects.sqlite.aiosqlite import (
    AsyncAdapt_aiosqlite_connection,
    AsyncAdapt_aiosqlite_dbapi,
    SQLiteDialect_aiosqlite,
)
from sqlalchemy.ext.asyncio import AsyncSession

from microflow.alchemy import Lending, Sessions
from microflow.stores.sqlite.connection import SqliteConnection
from microflow.stores.sqlite.values import stored_types

URL = "sqlite+microflow://"


class SqliteSessions:
    """Opens sessions for the handlers of one store."""

    def __init__(self) -> None:
        registry.register("sqlite.microflow", __name__, InPlaceDialect.__name__)
        self._sessions = Sessions(URL)
        self._driver = InPlaceDialect.import_dbapi()

    def open(self, kind: type[AsyncSession], connection: SqliteConnection) -> AbstractAsyncContextManager[AsyncSession]:
        """A session of this class on the connection of a transaction."""
        return self._sessions.open(kind, InPlaceConnection(self._driver, connection))


class InPlaceDialect(SQLiteDialect_aiosqlite):
    """SQLAlchemy's dialect for aiosqlite, on connections of ours."""

    driver = "microflow"
    supports_statement_cache = True

    @classmethod
    def import_dbapi(cls) -> AsyncAdapt_aiosqlite_dbapi:
        return AsyncAdapt_aiosqlite_dbapi(sqlite3, sqlite3)


class InPlaceConnection(AsyncAdapt_aiosqlite_connection):
    """The transaction's connection as SQLAlchemy's dialect takes it."""

    def __init__(self, driver: AsyncAdapt_aiosqlite_dbapi, connection: SqliteConnection) -> None:
        self.lending = Lending(connection)
        self._raw: sqlite3.Connection = connection.raw
        in_place: Any = InPlaceDriver(self._raw, self.lending)
        super().__init__(driver, in_place)

    def create_function(self, *args: Any, **kwargs: Any) -> None:
        self._raw.create_function(*args, **kwargs)

    def commit(self) -> None:
        self.lending.commit()

    def rollback(self) -> None:
        self.lending.rollback()

    def close(self) -> None:
        """It is the store's."""

    def terminate(self) -> None:
        """It is the store's."""


class InPlaceDriver:
    """The part of an aiosqlite connection that SQLAlchemy uses."""

    def __init__(self, connection: sqlite3.Connection, lending: Lending) -> None:
        self._connection = connection
        self._lending = lending

    @property
    def isolation_level(self) -> str | None:
        return self._connection.isolation_level

    def cursor(self) -> InPlaceCursor:
        return InPlaceCursor(self._connection.cursor(), self._lending)


class InPlaceCursor:
    """A cursor that gives what SQLite stores: the declared types are SQLAlchemy's to convert, in its own ways."""

    def __init__(self, cursor: sqlite3.Cursor, lending: Lending) -> None:
        self._cursor = cursor
        self._lending = lending

    def __await__(self) -> Generator[None, None, InPlaceCursor]:
        return self.__aenter__().__await__()

    async def __aenter__(self) -> InPlaceCursor:
        return self

    async def execute(self, sql: str, parameters: Any = ()) -> None:
        with self._lending.statement(sql), stored_types():
            self._cursor.execute(sql, parameters)

    async def executemany(self, sql: str, rows: Any) -> None:
        with self._lending.statement(sql):
            self._cursor.executemany(sql, rows)

    async def fetchone(self) -> Any:
        return self._cursor.fetchone()

    async def fetchmany(self, size: int | None = None) -> Any:
        return self._cursor.fetchmany(size or self._cursor.arraysize)

    async def fetchall(self) -> Any:
        return self._cursor.fetchall()

    async def __aiter__(self) -> AsyncIterator[Any]:
        for row in self._cursor:
            yield row

    async def close(self) -> None:
        self._cursor.close()

    @property
    def description(self) -> Any:
        return self._cursor.description

    @property
    def rowcount(self) -> int:
        return self._cursor.rowcount

    @property
    def lastrowid(self) -> int | None:
        return self._cursor.lastrowid

    @property
    def arraysize(self) -> int:
        return self._cursor.arraysize

    @arraysize.setter
    def arraysize(self, value: int) -> None:
        self._cursor.arraysize = value
