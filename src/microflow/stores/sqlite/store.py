"""The SQLite store: a service's view of one file, which other services and other processes may share."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from microflow.embedded.database import Database
from microflow.embedded.errors import cannot_open
from microflow.embedded.statements import statements
from microflow.errors import IdentityError, StoreUnavailable
from microflow.ports import Blocked, ClaimKey, Clock, Migration, OrderingKey
from microflow.stores.sqlite import tables
from microflow.stores.sqlite.connection import SqliteConnection
from microflow.stores.sqlite.dead_letters import SqliteDeadLetters
from microflow.stores.sqlite.handlers import SqliteHandlers
from microflow.stores.sqlite.inbox import SqliteInbox
from microflow.stores.sqlite.migrate import migrate
from microflow.stores.sqlite.names import Names
from microflow.stores.sqlite.outbox import SqliteOutbox
from microflow.stores.sqlite.parking import SqliteParking
from microflow.stores.sqlite.partitions import SqlitePartitions
from microflow.stores.sqlite.suspects import SqliteSuspects
from microflow.stores.sqlite.transaction import SqliteTransaction

SQL = statements(Path(__file__).with_name("database.sql"))


class SqliteStore:
    """`microflow.ports.Store` on a SQLite file. Open it with `await SqliteStore.open(path, service=…, clock=…)`."""

    lanes = 1
    """SQLite has one writer at a time, so a second lane would only wait."""

    def __init__(self, database: Database, *, service: str, clock: Clock) -> None:
        self._database = database
        self._service = service
        self._clock = clock
        self._closed = False
        self._alchemy: Any = None
        self._names = names = Names(service)
        self.partitions = SqlitePartitions(database, names)
        self.suspects = SqliteSuspects(database, names)
        self.inbox = SqliteInbox(database, names)
        self.parking = SqliteParking(database, names)
        self.dead_letters = SqliteDeadLetters(database, names)
        self.outbox = SqliteOutbox(database, clock=clock)
        self.handlers = SqliteHandlers(database, names)

    @classmethod
    async def open(
        cls, path: Path, *, service: str, clock: Clock, memory: bool = False, migrate: bool = True
    ) -> SqliteStore:
        """Open a file, making it and our tables if they are missing; with `migrate=False` they must be there.

        With `memory=True` the file is in a temporary folder, never synced, and gone when it is closed. Raises
        StoreUnavailable for a file that cannot be opened or written, IdentityError for one of a newer microflow.
        """
        database = Database.open(path, clock=clock, memory=memory)
        try:
            await tables.prepare(database, migrate=migrate)
        except BaseException as error:
            database.close()
            if isinstance(error, StoreUnavailable) and isinstance(error.__cause__, sqlite3.Error):
                raise cannot_open(database.path, error.__cause__) from error.__cause__
            raise
        return cls(database, service=service, clock=clock)

    @property
    def path(self) -> Path:
        """Where the file is; with `memory=True`, in a folder that is gone when all who opened it have closed it."""
        return self._database.path

    async def look_up(
        self, claims: Collection[ClaimKey], keys: Collection[OrderingKey]
    ) -> tuple[Mapping[ClaimKey, bytes], Mapping[OrderingKey, Blocked]]:
        return await self.inbox.seen(claims), await self.parking.blocked(keys)

    @contextlib.asynccontextmanager
    async def transaction(self, *, pause: timedelta | None = None) -> AsyncIterator[SqliteTransaction]:
        async with self._database.writing(runs_foreign_code=True) as connection:
            transaction = SqliteTransaction(connection, self._names, self._open_session)
            try:
                yield transaction
                transaction.end()
            finally:
                transaction.connection.close()
        transaction.committed()

    async def migrate(self, migrations: Sequence[Migration]) -> Sequence[str]:
        return await migrate(self._database, self._service, migrations, now=self._clock.now())

    async def bind(self, cluster_id: str) -> str:
        async with self._database.writing() as connection:
            connection.execute(SQL["remember cluster"], (cluster_id,))
            database_id, known = connection.execute(SQL["identity"]).fetchone()
        if known != cluster_id:
            raise IdentityError(
                f"The database {self._database.path} belongs to the log {known}, and this is the log {cluster_id}.",
                why="Its offsets are those of another log: with this one, events would be skipped or repeated.",
                fix="Name the log it belongs to (MICROFLOW_KAFKA), or a database of this log (MICROFLOW_DATABASE).",
            )
        return str(database_id)

    async def probe(self) -> None:
        await self._database.probe(SQL["probe"])

    async def time(self) -> datetime:
        return datetime.fromisoformat(self._database.read(SQL["time"])[0][0])

    async def close(self) -> None:
        if not self._closed:
            self._closed = True
            self.outbox.close()
            self.parking.close()
            self._database.close()

    def _open_session(self, kind: type[Any], connection: SqliteConnection) -> AbstractAsyncContextManager[Any]:
        from microflow.stores.sqlite.alchemy import SqliteSessions  # SQLAlchemy is an extra

        self._alchemy = self._alchemy or SqliteSessions()
        session: AbstractAsyncContextManager[Any] = self._alchemy.open(kind, connection)
        return session
