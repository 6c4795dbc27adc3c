"""The local log: what Kafka promises, in one SQLite file that several processes of a machine use at once."""

from __future__ import annotations

import contextlib
import sqlite3
import uuid
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from datetime import timedelta
from pathlib import Path

from microflow.embedded.database import Database
from microflow.errors import StoreError, TransportError
from microflow.ports import Clock, RebalanceListener, Record, Subscription
from microflow.records import MAX_RECORD_BYTES
from microflow.transports.local import groups
from microflow.transports.local.administration import LocalAdministration
from microflow.transports.local.errors import transport_error
from microflow.transports.local.format import prepare
from microflow.transports.local.inspection import LocalInspection
from microflow.transports.local.log import CLEAN_AT_ONCE, Log
from microflow.transports.local.membership import Everything, GroupMember, Membership, Patience
from microflow.transports.local.subscription import LocalSubscription
from microflow.transports.local.topics import LocalTopics


class LocalTransport:
    """`microflow.ports.Transport` in a file. Two handles on one file are like two processes on it."""

    def __init__(
        self, database: Database, log: Log, *, cluster_id: str, clock: Clock, patience: Patience | None
    ) -> None:
        self._database = database
        self._log = log
        self._clock = clock
        self._patience = patience
        self._topics = LocalTopics(log, cluster_id=cluster_id)
        self._administration = LocalAdministration(log)
        self._inspection = LocalInspection(log)
        self._max_record_bytes = log.max_record_bytes
        self._subscriptions: dict[LocalSubscription, Membership] = {}
        self._closed = False

    @classmethod
    def open(
        cls,
        path: Path,
        *,
        clock: Clock,
        memory: bool = False,
        partitions: int = 6,
        session_timeout: timedelta | None = timedelta(seconds=10),
        heartbeat: timedelta = timedelta(milliseconds=500),
        rebalance_timeout: timedelta = timedelta(seconds=60),
        retention: timedelta = timedelta(days=7),
        max_record_bytes: int = MAX_RECORD_BYTES,
        new_id: Callable[[], str] = lambda: uuid.uuid4().hex,
    ) -> LocalTransport:
        """Open a log, making the file if it is missing. Raises TransportError, with what to do about it.

        Topics get `partitions` partitions when they are named first. Without `session_timeout` members never expire.
        `memory=True` makes a log that is gone with its last handle; further handles are opened by its `path`.
        """
        try:
            database = Database.open(path, clock=clock, memory=memory)
        except StoreError as cause:
            raise transport_error(path, cause) from cause
        try:
            cluster_id = prepare(database, new_id=new_id)
        except (sqlite3.Error, StoreError) as cause:
            database.close()
            raise transport_error(path, cause) from cause
        except TransportError:
            database.close()
            raise
        log = Log(
            database,
            clock=clock,
            new_id=new_id,
            partitions=partitions,
            retention=retention,
            max_record_bytes=max_record_bytes,
            topic_changed=groups.topic_changed,
        )
        patience = None if session_timeout is None else Patience(session_timeout, heartbeat, rebalance_timeout)
        return cls(database, log, cluster_id=cluster_id, clock=clock, patience=patience)

    @property
    def path(self) -> Path:
        """Where the log is."""
        return self._database.path

    @property
    def topics(self) -> LocalTopics:
        return self._topics

    @property
    def inspection(self) -> LocalInspection:
        return self._inspection

    @property
    def administration(self) -> LocalAdministration:
        return self._administration

    def max_record_bytes(self, topic: str) -> int:
        return self._max_record_bytes

    @property
    def publishing_at_once(self) -> int:
        return 1  # the file has one writer at a time, and one commit for many records costs what one for one does

    async def publish(self, records: Sequence[Record]) -> Sequence[TransportError | None]:
        self._check_open()
        if not records:
            return []
        errors = await self._log.append(records)
        await self._log.clean()
        return errors

    @contextlib.asynccontextmanager
    async def subscribe(
        self, topics: Collection[str], *, group: str | None, listener: RebalanceListener
    ) -> AsyncIterator[Subscription]:
        self._check_open()
        membership: Membership
        if group is None:
            membership = Everything(self._log, topics)
        else:
            membership = GroupMember(self._log, group, topics, clock=self._clock, patience=self._patience)
        subscription = LocalSubscription(self._log, membership, listener, clock=self._clock)
        self._subscriptions[subscription] = membership
        try:
            await membership.join()
            yield subscription
        finally:
            self._subscriptions.pop(subscription, None)
            await subscription.close()

    async def disconnect(self) -> None:
        """Make all members of this handle vanish at once, as if their sessions had timed out.

        One that goes on all the same is told so and joins anew, like a process that was stopped for a while.
        """
        members = [each for each in self._subscriptions.values() if isinstance(each, GroupMember)]
        async with self._log.writing() as connection:
            for member in members:
                groups.remove(connection, member.group, [] if member.id is None else [member.id])

    async def delete_expired(self) -> int:
        """Delete all records older than the retention, now; return how many. Otherwise they go bit by bit."""
        deleted = 0
        while more := await self._log.delete_expired(limit=CLEAN_AT_ONCE):
            deleted += more
        return deleted

    async def close(self) -> None:
        """Leave all groups and let go of the file. Closing twice is harmless."""
        if self._closed:
            return
        self._closed = True
        for subscription in tuple(self._subscriptions):
            await subscription.close()
        self._database.close()

    def _check_open(self) -> None:
        if self._closed:
            raise TransportError("the log is closed")
