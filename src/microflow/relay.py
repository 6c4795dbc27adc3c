"""The relay: what was committed in the outbox reaches the log, in order per key, and is forgotten once acknowledged.

A relay publishes a row only after every earlier row of its key was acknowledged, or was sent before it on the same
ordered stream. So the first time a row appears in the log, its predecessor is there already, however many relays
run and whichever of them were paused; repetitions are absorbed by the inboxes of those who read.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from datetime import timedelta

from microflow.errors import LogGone, StoreError, StoreGone, TransportError
from microflow.faults import Reach, pass_by
from microflow.partitioner import Partitioner
from microflow.ports import Clock, Outbox, OutboxRow, Record, Topic, TopicPartition, Transport
from microflow.signals import Signal

logger = logging.getLogger("microflow.relay")

LEASE = timedelta(seconds=2)
FIRST_WAIT = timedelta(milliseconds=50)
LONGEST_WAIT = timedelta(seconds=5)


class Relay:
    """Publishes the outbox of one database. Several may run, in any processes: one at a time holds the lease."""

    def __init__(
        self,
        outbox: Outbox,
        transport: Transport,
        *,
        clock: Clock,
        owner: str,
        batch: int = 500,
        reach: Reach = pass_by,
    ) -> None:
        self._outbox = outbox
        self._transport = transport
        self._clock = clock
        self._owner = owner
        self._batch = batch
        self._reach = reach
        self._partitioner = Partitioner()
        self._topics: dict[str, Topic] = {}
        self._missing: set[str] = set()
        self._signal = Signal(clock)
        self._lease_ends = clock.now() - LEASE
        self.published = 0
        self._shards: frozenset[int] = frozenset()
        self.stands_by = False
        """Whether others hold the leases of all shards."""

    async def has_pending(self) -> bool:
        """Whether rows wait that are this relay's to publish, as far as it knows. Raises StoreError."""
        return not self.stands_by and bool(await self._outbox.pending(after=-1, limit=1, shards=self._shards or None))

    def wake(self) -> None:
        """Rows were committed: publish them now."""
        self._signal.set()

    async def watch(self) -> None:
        """Be woken by commits of others, until cancelled."""
        while True:
            try:
                await self._outbox.changed()
            except StoreGone:
                raise
            except StoreError:
                await self._clock.sleep(LONGEST_WAIT)
            self._signal.set()

    async def run(self) -> None:
        """Publish until cancelled, through outages of the log and of the database.

        Raises StoreGone and LogGone for one that was deleted.
        """
        wait = FIRST_WAIT
        while True:
            try:
                again = await self.publish_pending()
                nothing_failed = again is None or self.stands_by
            except (StoreGone, LogGone):
                raise
            except (StoreError, TransportError) as error:
                logger.warning("the outbox waits: %s", error)
                again, nothing_failed = wait, False
            if nothing_failed:
                wait = FIRST_WAIT
            else:
                again, wait = max(again or wait, wait), min(wait * 2, LONGEST_WAIT)
            await self._signal.wait(at_most=again)

    async def publish_pending(self) -> timedelta | None:
        """Publish what is there, as far as it can be; return when to try again, or None if nothing is left.

        Raises StoreError and TransportError; rows that were not acknowledged stay.
        """
        after = -1
        stopped: set[TopicPartition] = set()
        while rows := await self._outbox.pending(after=after, limit=self._batch, shards=self._shards or None):
            held = self._shards
            if not await self._hold_lease():
                return LEASE / 3
            if self._shards != held and len(self._shards) < self._outbox.shards:
                continue  # some of these rows are others' to publish
            after = rows[-1].position
            await self._publish(rows, stopped)
            if len(rows) < self._batch:
                break
        if stopped:
            return FIRST_WAIT
        if len(self._shards) < self._outbox.shards and await self._outbox.pending(after=-1, limit=1):
            return LEASE / 3  # if those who hold the other shards are gone, they will be ours
        return None

    async def release(self) -> None:
        """Let another relay begin at once."""
        now = self._clock.now()
        if self._lease_ends > now:
            self._lease_ends = now
            await self._outbox.lease(owner=self._owner, now=now, until=now)

    async def _hold_lease(self) -> bool:
        now = self._clock.now()
        if self._lease_ends - now < LEASE * 2 / 3:
            self._shards = await self._outbox.lease(owner=self._owner, now=now, until=now + LEASE)
            self.stands_by = not self._shards
            if self.stands_by:
                return False
            self._lease_ends = now + LEASE
        return True

    async def _publish(self, rows: Sequence[OutboxRow], stopped: set[TopicPartition]) -> None:
        """Publish rows in order, passing over partitions at which something failed before: order is per partition."""
        await self._learn_topics({row.topic for row in rows})
        sent: list[OutboxRow] = []
        records: list[Record] = []
        for row in rows:
            partition = self._partition_of(row)
            if partition not in stopped and row.topic in self._topics:
                sent.append(row)
                records.append(Record(row.topic, partition.partition, row.key, row.value, row.headers))
            elif row.topic not in self._topics:
                stopped.add(partition)
        if not sent:
            return
        self._reach("before publish")
        errors = await self._transport.publish(records)
        self._reach("after publish")
        acknowledged = []
        for row, record, error in zip(sent, records, errors, strict=True):
            if error is None:
                acknowledged.append(row.position)
            elif isinstance(error, LogGone):
                raise error
            elif record.source not in stopped:
                stopped.add(record.source)
                logger.warning("%s[%d] does not take an event: %s", record.topic, record.partition, error)
        self.published += len(acknowledged)
        self._reach("before delete")
        await self._outbox.delete(acknowledged)
        self._reach("after delete")

    async def _learn_topics(self, names: set[str]) -> None:
        unknown = names - self._topics.keys()
        if not unknown:
            return
        missing = await self._transport.topics.ensure(unknown)
        for name in missing - self._missing:
            logger.warning("the topic %s does not exist; its events wait in the outbox", name)
        self._missing = set(missing)
        self._topics.update(await self._transport.topics.describe(unknown - missing))

    def _partition_of(self, row: OutboxRow) -> TopicPartition:
        topic = self._topics.get(row.topic)
        if topic is None:
            return TopicPartition(row.topic, 0)
        # A record without a key has no order to keep: its id spreads it.
        spread = row.key if row.key is not None else dict(row.headers).get("ce_id", b"")
        return TopicPartition(row.topic, self._partitioner.partition(spread, partitions=topic.partitions))
