"""The PostgreSQL store: a service's view of one database, which other services and other processes share."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from microflow.embedded.statements import statements
from microflow.errors import IdentityError
from microflow.ports import Blocked, ClaimKey, Clock, Migration, OrderingKey
from microflow.stores.postgres import tables
from microflow.stores.postgres.connection import PostgresConnection
from microflow.stores.postgres.dead_letters import PostgresDeadLetters
from microflow.stores.postgres.errors import translated
from microflow.stores.postgres.handlers import PostgresHandlers
from microflow.stores.postgres.inbox import PostgresInbox
from microflow.stores.postgres.migrate import migrate
from microflow.stores.postgres.names import Names
from microflow.stores.postgres.notifications import Channel, Notifications
from microflow.stores.postgres.outbox import PostgresOutbox
from microflow.stores.postgres.parking import PostgresParking
from microflow.stores.postgres.partitions import PostgresPartitions
from microflow.stores.postgres.session import GUARANTEES, LOOKUPS, Address, Session
from microflow.stores.postgres.sessions import Sessions
from microflow.stores.postgres.settled import Settled
from microflow.stores.postgres.suspects import PostgresSuspects
from microflow.stores.postgres.transaction import PostgresTransaction

SQL = statements(Path(__file__).with_name("database.sql"))

LANES = 2
OUTBOX_LOOKED_AT_EVERY = timedelta(milliseconds=250)
PARKED_LOOKED_AT_EVERY = timedelta(seconds=1)
PROBE_BYTES = 65_536


class PostgresStore:
    """`microflow.ports.Store` on a PostgreSQL server. Open it with `await PostgresStore.open(url, service=…, clock=…)`.

    It has a few connections, however many partitions the service reads: one for each lane and one to spare for
    transactions, two for reading, one for the relay, one for what is rare, one that listens. Each is opened when it
    is first needed.
    """

    def __init__(self, address: Address, *, service: str, clock: Clock, lanes: int, direct: Address) -> None:
        self._service = service
        self._clock = clock
        self._lanes = lanes
        self._address = address
        self._direct = direct
        self._closed = False
        self._transactions = Sessions(self._open_lane, most=lanes + 1, purpose="transactions")
        self._reading = Sessions(self._open_lookups, most=2, purpose="reading")
        self._relaying = Sessions(self._open_lookups, most=2, purpose="the relay")
        self._rare = Sessions(self._open_lookups, most=1, purpose="housekeeping")
        self._alchemy: Any = None
        self._names = names = Names(service, self._reading)
        self._notifications = Notifications(self._relaying, listener=self._open_listener)
        appended = Channel("microflow_outbox", self._notifications, look_every=OUTBOX_LOOKED_AT_EVERY)
        parked = Channel("microflow_parked", self._notifications, look_every=PARKED_LOOKED_AT_EVERY)
        self._parked = parked
        self.partitions = PostgresPartitions(self._rare, names)
        self.suspects = PostgresSuspects(self._rare, names)
        self.inbox = PostgresInbox(self._reading, names)
        self.parking = PostgresParking(self._reading, names, parked)
        self.dead_letters = PostgresDeadLetters(self._rare, names, parked)
        self._settled = Settled()
        self.outbox = PostgresOutbox(self._relaying, appended, self._settled)
        self.handlers = PostgresHandlers(self._rare, names)

    @classmethod
    async def open(
        cls, url: str, *, service: str, clock: Clock, lanes: int = LANES, migrate: bool = True
    ) -> PostgresStore:
        """Connect, and make our tables if they are missing; with `migrate=False` they must be there.

        Raises StoreUnavailable for a server that does not answer or does not let us in, IdentityError for a database
        of a newer microflow.
        """
        address = Address(url, GUARANTEES)
        await tables.prepare(address, migrate=migrate)
        return cls(address, service=service, clock=clock, lanes=lanes, direct=address)

    @property
    def lanes(self) -> int:
        return self._lanes

    async def look_up(
        self, claims: Collection[ClaimKey], keys: Collection[OrderingKey]
    ) -> tuple[Mapping[ClaimKey, bytes], Mapping[OrderingKey, Blocked]]:
        seen, do_some_wait = await self.inbox.look_up(claims)
        return seen, await self.parking.blocked(keys) if do_some_wait else {}

    @contextlib.asynccontextmanager
    async def transaction(self, *, pause: timedelta | None = None) -> AsyncIterator[PostgresTransaction]:
        async with self._transactions.session() as session:
            transaction = PostgresTransaction(session, self._names, self._settled, self._open_session, pause=pause)
            try:
                yield transaction
                await transaction.commit()
            except BaseException:
                await transaction.roll_back()
                raise
        if transaction.has_unpublished:
            self.outbox.appended()
        if transaction.has_parked:
            self._parked.tell()

    async def migrate(self, migrations: Sequence[Migration]) -> Sequence[str]:
        return await migrate(self._rare, self._service, migrations, now=self._clock.now())

    async def bind(self, cluster_id: str) -> str:
        await self._rare.fetch(SQL["remember cluster"], cluster_id)
        ((database_id, known),) = await self._rare.fetch(SQL["identity"])
        if known != cluster_id:
            raise IdentityError(
                f"The database belongs to the log {known}, and this is the log {cluster_id}.",
                why="Its offsets are those of another log: with this one, events would be skipped or repeated.",
                fix="Name the log it belongs to (MICROFLOW_KAFKA), or a database of this log (MICROFLOW_DATABASE).",
            )
        return str(database_id)

    async def probe(self) -> None:
        session = await Session.open(self._address)
        try:
            with translated():
                await session.fetch(SQL["probe"], os.urandom(PROBE_BYTES))
        finally:
            session.hang_up()

    async def time(self) -> datetime:
        instant: datetime = (await self._rare.fetch(SQL["time"]))[0][0]
        return instant

    async def close(self) -> None:
        if not self._closed:
            self._closed = True
            await self._notifications.close()
            every = (self._transactions, self._reading, self._relaying, self._rare)
            await asyncio.gather(*(sessions.close() for sessions in every))

    def _open_session(self, kind: type[Any], connection: PostgresConnection) -> AbstractAsyncContextManager[Any]:
        from microflow.stores.postgres.alchemy import PostgresSessions  # SQLAlchemy is an extra

        self._alchemy = self._alchemy or PostgresSessions()
        session: AbstractAsyncContextManager[Any] = self._alchemy.open(kind, connection)
        return session

    async def _open_lane(self) -> Session:
        return await self._connect(self._address, for_handlers=True)

    async def _open_lookups(self) -> Session:
        return await self._connect(Address(self._address.url, {**self._address.settings, **LOOKUPS}))

    async def _open_listener(self) -> Session:
        return await self._connect(self._direct)

    async def _connect(self, address: Address, *, for_handlers: bool = False) -> Session:
        session = await Session.open(address, for_handlers=for_handlers)
        self._names.forget()
        return session
