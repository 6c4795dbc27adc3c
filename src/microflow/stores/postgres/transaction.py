"""One atomic step on PostgreSQL: fence, claim, the handlers' statements, then everything else that it writes."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, TypeAlias

from microflow.embedded.headers import encode_headers
from microflow.embedded.statements import statements
from microflow.errors import Fenced, StoreError
from microflow.ports import Appended, Changes, Claim, OrderingKey, TopicPartition
from microflow.stores.postgres import handlers, partitions, suspects
from microflow.stores.postgres.connection import PostgresConnection
from microflow.stores.postgres.dead_letters import DeadLettersInTransaction
from microflow.stores.postgres.errors import FROM_DRIVER, translated
from microflow.stores.postgres.inbox import InboxInTransaction
from microflow.stores.postgres.kinds import kinds_of
from microflow.stores.postgres.locks import ALONE, OUTBOX_KEY, PARTITION, REGISTRY, SHARED, lock, number_of
from microflow.stores.postgres.names import Names
from microflow.stores.postgres.parking import ParkingInTransaction
from microflow.stores.postgres.session import Session
from microflow.stores.postgres.settled import Settled

SQL = statements(Path(__file__).with_name("write.sql"))

PATIENCE_TO_ROLL_BACK = timedelta(seconds=1)
AFTER_THE_LONGEST_PAUSE = timedelta(seconds=2)
"""A handler past its deadline is cancelled and rolled back by us; the server ends those that nobody cancels."""


OpenSession: TypeAlias = Callable[[type[Any], PostgresConnection], AbstractAsyncContextManager[Any]]


class PostgresTransaction:
    """`microflow.ports.Transaction` on a lane's connection. It begins with its first statement, in one round trip."""

    def __init__(
        self,
        session: Session,
        names: Names,
        settled: Settled,
        open_session: OpenSession,
        *,
        pause: timedelta | None = None,
    ) -> None:
        self._begin_script = ["begin"] if pause is None else ["begin", _longest_pause(pause)]
        self._session = session
        self._open_session = open_session
        self._names = names
        self._settled = settled
        self._locked: set[OrderingKey] = set()
        self._connection = PostgresConnection(session, self._begin)
        self._parking = ParkingInTransaction(session, names)
        self._dead_letters = DeadLettersInTransaction(session, names)
        self._inbox = InboxInTransaction(session, names, self._parking)
        self.has_unpublished = False
        self.has_parked = False

    @property
    def connection(self) -> PostgresConnection:
        return self._connection

    @contextlib.asynccontextmanager
    async def session(self, kind: type[Any]) -> AsyncIterator[Any]:
        await self._begin()
        async with self._open_session(kind, self._connection) as session:
            yield session

    @property
    def failure(self) -> StoreError | None:
        if self._connection.failure is None and self._connection.begun and not self._session.in_transaction:
            return self._connection.ended()
        return self._connection.failure

    async def fence(
        self,
        epochs: Mapping[TopicPartition, int],
        *,
        registry: int | None = None,
        keys: Collection[OrderingKey] = (),
    ) -> None:
        self._connection.check_usable()
        numbers = await self._names.partitions(epochs)
        by_number = {numbers[partition]: epoch for partition, epoch in epochs.items()}
        with translated():
            # Lock, then look: the last statement sees what was committed before the locks were given.
            locks, queries = [lock(SHARED, REGISTRY)], []
            if by_number:
                locks.append(lock(SHARED, PARTITION, by_number))
                queries.append(partitions.fence_query(by_number))
            if registry is not None:
                queries.append(handlers.fence_query(self._names.service, registry))
            locks += self._lock_script(keys)
            status = await self._script([*locks, " union all ".join(queries)] if queries else locks)
            if queries and status != f"SELECT {len(by_number) + (registry is not None)}":
                if lost := await partitions.lost(self._session, by_number):
                    raise Fenced(partition for partition in epochs if numbers[partition] in lost)
                raise await handlers.changed(self._session, self._names.service)

    async def claim(self, claims: Sequence[Claim], *, now: datetime) -> Sequence[bool]:
        self._connection.check_usable()
        await self._begin()
        with translated():
            return await self._inbox.claim(claims, now=now)

    async def write(self, changes: Changes) -> Sequence[Appended]:
        self._connection.check_usable()
        await self._begin()
        with translated():
            if changes.dead_letters:
                await self._bury(changes)
            if changes.parked:
                await self._parking.park(changes.parked)
                self.has_parked = True
            if changes.cleared:
                await suspects.clear(self._session, self._names, changes.cleared)
            if changes.beginnings and await partitions.begin(self._session, self._names, changes.beginnings):
                await handlers.renew_version(self._session, self._names.service)
            return await self._append_and_advance(changes)

    async def commit(self) -> None:
        """Make it durable. Raises StoreError, also when nobody knows whether it was committed."""
        self._connection.check_usable()
        self._connection.close()
        if not self._connection.begun:
            return
        # A cancellation must not leave it open whether the commit was sent: it is, and its answer is waited for.
        committing = asyncio.ensure_future(self._session.script("commit"))
        try:
            with translated():
                status = await asyncio.shield(committing)
        except asyncio.CancelledError:
            await asyncio.wait([committing])
            raise
        if status != "COMMIT":
            raise StoreError("The transaction was rolled back: a statement on the driver's own connection had failed.")

    async def roll_back(self) -> None:
        """Undo it, or hang up, which comes to the same."""
        self._connection.close()
        if self._session.closed or not self._session.in_transaction:
            return
        try:
            async with asyncio.timeout(PATIENCE_TO_ROLL_BACK.total_seconds()):
                await self._session.script("rollback")
        except FROM_DRIVER:
            self._session.hang_up()
        except asyncio.CancelledError:
            self._session.hang_up()
            raise

    async def _begin(self) -> None:
        if not self._connection.begun:
            with translated():
                await self._script([])

    async def _script(self, statements: Sequence[str]) -> str:
        """Run statements that need no parameters, with the `begin` before them if that is still to be said."""
        begin = [] if self._connection.begun else self._begin_script
        self._connection.begun = True
        return await self._session.script("; ".join([*begin, *statements]))

    async def _bury(self, changes: Changes) -> None:
        halted = {parked.claim for parked in changes.parked}
        await self._dead_letters.bury(changes.dead_letters)
        if gone := {letter.claim: letter for letter in changes.dead_letters if letter.claim not in halted}:
            numbers = await self._names.handlers({claim.handler for claim in gone})
            await self._parking.remove([numbers[claim.handler] for claim in gone], [claim.digest for claim in gone])
            await self._inbox.set_status(gone.keys(), "dead", [letter.failed_at for letter in gone.values()])
        self.has_parked = True

    async def _append_and_advance(self, changes: Changes) -> Sequence[Appended]:
        rows = changes.outbox
        if not rows and not changes.watermarks:
            return ()
        keys = {OrderingKey(row.topic, row.key) for row in rows if row.key is not None}
        if script := self._lock_script(keys):
            await self._script(script)
        numbers = await self._names.partitions(changes.watermarks)
        kinds, kind_of = kinds_of([(row.topic, row.created_at, row.publisher, row.partition) for row in rows])
        (told,) = await self._session.fetch(
            SQL["write"],
            self._names.service,
            kind_of,
            [row.key for row in rows],
            [row.value for row in rows],
            [encode_headers(row.headers) for row in rows],
            [topic for topic, *_ in kinds],
            [created_at for _, created_at, *_ in kinds],
            [publisher for *_, publisher, _ in kinds],
            [partition for *_, partition in kinds],
            [numbers[partition] for partition in changes.watermarks],
            list(changes.watermarks.values()),
            self._settled.up_to(self._session),
        )
        if self._inbox.transaction not in {None, told["transaction"]}:
            raise self._connection.ended()
        if not rows:
            return ()
        appended = [Appended(*each) for each in zip(told["positions"], told["have_publishers"], strict=True)]
        self.has_unpublished = self.has_unpublished or not all(each.has_publisher for each in appended)
        return appended

    def _lock_script(self, keys: Collection[OrderingKey]) -> list[str]:
        """What locks those outbox keys that are not locked yet."""
        numbers = {number_of(key) for key in keys if key not in self._locked}
        self._locked.update(keys)
        return [lock(ALONE, OUTBOX_KEY, numbers)] if numbers else []


def _longest_pause(pause: timedelta) -> str:
    limit = (pause + AFTER_THE_LONGEST_PAUSE) // timedelta(milliseconds=1)
    return f"set local idle_in_transaction_session_timeout = {limit}"
