"""One atomic step on SQLite: fence, claim, the handlers' statements, then everything else that it writes."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import datetime
from typing import Any, TypeAlias

from microflow.embedded.errors import translated
from microflow.errors import StoreError
from microflow.ports import Appended, Changes, Claim, OrderingKey, TopicPartition
from microflow.stores.sqlite import handlers, outbox, partitions, suspects
from microflow.stores.sqlite.connection import SqliteConnection, ended_behind_our_back
from microflow.stores.sqlite.dead_letters import DeadLettersInTransaction
from microflow.stores.sqlite.inbox import InboxInTransaction
from microflow.stores.sqlite.names import Names, NamesInTransaction
from microflow.stores.sqlite.parking import ParkingInTransaction

OpenSession: TypeAlias = Callable[[type[Any], SqliteConnection], AbstractAsyncContextManager[Any]]


class SqliteTransaction:
    """`microflow.ports.Transaction` on the write connection. Nothing in it awaits, so nobody else comes between."""

    def __init__(self, connection: sqlite3.Connection, names: Names, open_session: OpenSession) -> None:
        self._raw = connection
        self._open_session = open_session
        self._connection = SqliteConnection(connection)
        self._names = NamesInTransaction(names, connection)
        self._parking = ParkingInTransaction(connection, self._names)
        self._dead_letters = DeadLettersInTransaction(connection, self._names)
        self._inbox = InboxInTransaction(connection, self._names, self._parking)

    @property
    def connection(self) -> SqliteConnection:
        return self._connection

    def session(self, kind: type[Any]) -> AbstractAsyncContextManager[Any]:
        return self._open_session(kind, self._connection)

    @property
    def failure(self) -> StoreError | None:
        if self._connection.failure is None and not self._raw.in_transaction:
            return ended_behind_our_back()
        return self._connection.failure

    async def fence(
        self,
        epochs: Mapping[TopicPartition, int],
        *,
        registry: int | None = None,
        keys: Collection[OrderingKey] = (),
    ) -> None:
        self._connection.check_usable()
        with translated():
            partitions.fence(self._raw, self._names, epochs)
            if registry is not None:
                handlers.check_version(self._raw, self._names.service, registry)

    async def claim(self, claims: Sequence[Claim], *, now: datetime) -> Sequence[bool]:
        self._connection.check_usable()
        with translated():
            granted = self._inbox.claim(claims, now=now)
            for claim, is_granted in zip(claims, granted, strict=True):
                if is_granted and claim.resumes and claim.status == "done":
                    self._dead_letters.has_succeeded(claim.key)
            return granted

    async def write(self, changes: Changes) -> Sequence[Appended]:
        self._connection.check_usable()
        with translated():
            self._bury(changes)
            for parked in changes.parked:
                self._parking.park(parked)
                self._inbox.set_status(parked.claim, "parked", completed_at=None)
            appended = outbox.append_in_step(self._raw, self._names.service, changes.outbox) if changes.outbox else ()
            if partitions.begin(self._raw, self._names, self._names.service, changes.beginnings):
                handlers.renew_version(self._raw, self._names.service)
            partitions.advance(self._raw, self._names, changes.watermarks)
            suspects.clear(self._raw, self._names, changes.cleared)
            return appended

    def end(self) -> None:
        """Make the connection useless before the commit; raises if nothing may be committed."""
        self._connection.check_usable()
        self._connection.close()

    def committed(self) -> None:
        self._names.committed()

    def _bury(self, changes: Changes) -> None:
        halted = {parked.claim for parked in changes.parked} if changes.dead_letters else frozenset()
        for letter in changes.dead_letters:
            self._dead_letters.bury(letter)
            if letter.claim not in halted:
                self._parking.remove(self._names.handler(letter.claim.handler), letter.claim.digest)
                self._inbox.set_status(letter.claim, "dead", completed_at=letter.failed_at)
