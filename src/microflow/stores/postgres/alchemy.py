"""Sessions of SQLAlchemy on PostgreSQL: its own dialect for asyncpg, on the connection of a lane's transaction."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from typing import Any
from weakref import WeakKeyDictionary

from sqlalchemy.dialects import registry
from sqlalchemy.dialects.postgresql.asyncpg import (
    AsyncAdapt_asyncpg_connection,
    PGDialect_asyncpg,
)
from sqlalchemy.ext.asyncio import AsyncSession

from microflow.alchemy import Lending, Sessions
from microflow.stores.postgres.connection import PostgresConnection

URL = "postgresql+microflow://"


class PostgresSessions:
    """Opens sessions for the handlers of one store."""

    def __init__(self) -> None:
        registry.register("postgresql.microflow", __name__, LentDialect.__name__)
        # Our connections have decoded JSON already.
        self._sessions = Sessions(URL, json_deserializer=_as_it_is)
        self._driver: Any = LentDialect.import_dbapi()  # type: ignore[no-untyped-call]  # SQLAlchemy's has no types
        # Kept as long as the driver's own: they hold what SQLAlchemy has prepared.
        self._lent: WeakKeyDictionary[Any, LentConnection] = WeakKeyDictionary()

    def open(
        self, kind: type[AsyncSession], connection: PostgresConnection
    ) -> AbstractAsyncContextManager[AsyncSession]:
        """A session of this class on the connection of a transaction that has begun."""
        lent = self._lent.get(connection.raw)
        if lent is None:
            lent = self._lent[connection.raw] = LentConnection(self._driver, connection.raw)
        lent.lending = Lending(connection)
        return self._sessions.open(kind, lent)


class LentDialect(PGDialect_asyncpg):
    """SQLAlchemy's dialect for asyncpg, on connections of ours: it sets nothing up on them."""

    driver = "microflow"
    supports_statement_cache = True

    def on_connect(self) -> None:
        """Its codecs would take the place of those that `Connection` has."""

    def do_execute(self, cursor: Any, statement: str, parameters: Any, context: Any = None) -> None:
        with cursor._adapt_connection.lending.statement(statement):
            cursor.execute(statement, parameters)

    def do_execute_no_params(self, cursor: Any, statement: str, context: Any = None) -> None:
        with cursor._adapt_connection.lending.statement(statement):
            cursor.execute(statement)

    def do_executemany(self, cursor: Any, statement: str, parameters: Any, context: Any = None) -> None:
        with cursor._adapt_connection.lending.statement(statement):
            cursor.executemany(statement, parameters)


class LentConnection(AsyncAdapt_asyncpg_connection):
    """The transaction's connection as SQLAlchemy's dialect takes it. Only its transaction is the store's to end."""

    lending: Lending

    def __init__(self, driver: Any, raw: Any) -> None:
        super().__init__(driver, raw)  # type: ignore[no-untyped-call]  # as above
        self.isolation_level = self._isolation_setting = "autocommit"  # so that it begins no transaction itself

    def commit(self) -> None:
        self.lending.commit()

    def rollback(self) -> None:
        self.lending.rollback()

    def close(self) -> None:
        """It is the store's."""

    def terminate(self) -> None:
        """It is the store's."""


def _as_it_is(value: Any) -> Any:
    return value
