"""Sessions of SQLAlchemy on SQLite: its own dialect, run in place on the write connection of a transaction."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from contextlib import AbstractAsyncContextManager
from typing import Any

from sqlalchemy.dialects import registry
from sqlalchemy.dialects.sqlite.base import SQLiteExecutionContext
from sqlalchemy.dialects.sqlite.pysqlite import SQLiteDialect_pysqlite
from sqlalchemy.ext.asyncio import AsyncSession

from microflow.sessions import Lending, Sessions
from microflow.stores.sqlite.connection import SqliteConnection
from microflow.stores.sqlite.values import stored_types

URL = "sqlite+microflow://"


class SqliteSessions:
    """Opens sessions for the handlers of one store."""

    def __init__(self) -> None:
        registry.register("sqlite.microflow", __name__, InPlaceDialect.__name__)
        self._sessions = Sessions(URL)

    def open(self, kind: type[AsyncSession], connection: SqliteConnection) -> AbstractAsyncContextManager[AsyncSession]:
        """A session of this class on the connection of a transaction."""
        return self._sessions.open(kind, InPlaceConnection(connection))


class InPlaceConnection:
    """The transaction's connection as SQLAlchemy's dialect for sqlite3 takes it."""

    def __init__(self, connection: SqliteConnection) -> None:
        self.lending = Lending(connection)
        self._raw = connection.raw
        self.commit = self.lending.commit
        self.rollback = self.lending.rollback

    @property
    def isolation_level(self) -> str | None:
        return self._raw.isolation_level

    def cursor(self) -> InPlaceCursor:
        cursor = self._raw.cursor(InPlaceCursor)
        cursor.lending = self.lending
        return cursor

    def create_function(self, *args: Any, **kwargs: Any) -> None:
        self._raw.create_function(*args, **kwargs)

    def close(self) -> None:
        """It is the store's."""


class InPlaceCursor(sqlite3.Cursor):
    """A cursor of sqlite3 whose values are as SQLAlchemy wants them: what SQLite stores, converted by nobody else."""

    lending: Lending

    def execute(self, sql: str, parameters: Any = (), /) -> InPlaceCursor:
        with self.lending.statement(sql), stored_types():
            super().execute(sql, parameters)
            return self

    def executemany(self, sql: str, rows: Iterable[Any], /) -> InPlaceCursor:
        with self.lending.statement(sql):
            super().executemany(sql, rows)
            return self


class InPlaceContext(SQLiteExecutionContext):
    def create_server_side_cursor(self) -> Any:
        return self._dbapi_connection.cursor()


class InPlaceDialect(SQLiteDialect_pysqlite):
    """SQLAlchemy's dialect for sqlite3, called asynchronous: its statements run where they are, in microseconds."""

    driver = "microflow"
    is_async = True
    supports_statement_cache = True
    supports_server_side_cursors = True
    execution_ctx_cls = InPlaceContext
