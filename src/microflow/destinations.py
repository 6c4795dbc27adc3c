"""The destinations: where each row of the outbox goes, and which topic, partition or key does not take any for now.

Only what fails waits. A partition without a leader holds up its own keys, a topic that is missing or forbidden its own
events, a record that is too large the later ones of its key. Each is tried again with one record, after growing waits.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeAlias

from microflow.errors import RecordTooLarge, TopicRefused, TransportError
from microflow.partitioner import Partitioner
from microflow.ports import Clock, Headers, OrderingKey, Outbox, OutboxRow, Topic, TopicPartition, Transport

logger = logging.getLogger("microflow.relay")

FIRST_WAIT = timedelta(milliseconds=50)
LONGEST_WAIT = timedelta(seconds=5)
FIRST_WAIT_OF_KEY = timedelta(seconds=5)
LONGEST_WAIT_OF_KEY = timedelta(minutes=1)
TELL_EVERY = timedelta(minutes=1)

Destination: TypeAlias = str | TopicPartition | OrderingKey | int
"""A topic, a partition, a key, or, by its position, a row that has no key."""


@dataclass(slots=True)
class _Wait:
    """Why a destination waits, until when, how long after its next failure, and the row with which it is tried. A key
    waits because of one row (`position`): without that one it would not."""

    error: TransportError
    until: timedelta
    next: timedelta
    position: int | None = None
    tried_with: int | None = None
    is_missing: bool = False


class Destinations:
    """What a relay knows of the log's topics, and which destinations wait; `wake` is called when one is well again."""

    def __init__(self, outbox: Outbox, transport: Transport, *, clock: Clock, wake: Callable[[], None]) -> None:
        self._outbox = outbox
        self._transport = transport
        self._clock = clock
        self._wake = wake
        self._partitioner = Partitioner()
        self._topics: dict[str, Topic] = {}
        self._version: int | None = None
        self._sources: dict[str, tuple[TopicPartition, ...]] = {}
        self._waits: dict[Destination, _Wait] = {}
        self._closed: set[Destination] = set()
        self._told: dict[str | int, timedelta] = {}
        self._in_trouble: set[str] = set()

    # ── where a row goes ──────────────────────────────────────────────────────────────────────────────────────────

    async def learn(self, topics: Collection[str]) -> None:
        """Get to know topics, creating them where the log does that by itself; those that are missing wait.

        How many partitions of each are used is asked every time, after its rows were read: whoever switches to others
        waits until none are pending. Raises TransportError if the log does not answer, and StoreError.
        """
        await self._describe(name for name in topics if name not in self._topics or name in self._waits)
        found = {name: self._topics[name].partitions for name in topics if name in self._topics}
        if not found:
            return
        used = await self._outbox.partition_counts(found)
        if grown := [name for name, count in used.items() if count > found[name]]:
            for name in grown:
                del self._topics[name]
            await self._describe(grown)
        for name, count in used.items():
            if name in self._topics and len(self._sources.get(name, ())) != count:
                self._use(name, count)

    def known_as_of(self, version: int) -> None:
        """What was learnt under another version of the registry is to be learnt again: partitions were switched."""
        if version != self._version:
            self._version = version
            self._sources.clear()

    async def _describe(self, names: Iterable[str]) -> None:
        wanted = {name for name in names if self._is_due(name)}
        if not wanted:
            return
        missing = await self._transport.topics.ensure(wanted)
        found = await self._transport.topics.describe(wanted - missing)
        self._topics.update(found)
        for name in wanted - found.keys():
            self._topics.pop(name, None)
            self._refuse(name, TopicRefused(f"the log has no topic {name}"))
            self._tell(name, "the topic %s does not exist; its events wait in the outbox", name)
        for name in found:
            if name in self._waits and self._waits[name].is_missing:
                self._recover(name)

    def _use(self, name: str, count: int) -> None:
        if count > self._topics[name].partitions:
            self._refuse(name, TopicRefused(f"the log has only {self._topics[name].partitions} partitions of {name}"))
            self._tell(name, "%d partitions of %s are used, and the log has fewer; its events wait", count, name)
        else:
            self._sources[name] = tuple(TopicPartition(name, number) for number in range(count))

    def _refuse(self, name: str, error: TopicRefused) -> None:
        self._sources.pop(name, None)
        self._wait(name, error, FIRST_WAIT, LONGEST_WAIT)
        self._waits[name].is_missing = True

    def partition_of(
        self, topic: str, key: bytes | None, headers: Headers, number: int | None = None
    ) -> TopicPartition | None:
        """Where a row goes; None while its topic is not known."""
        sources = self._sources.get(topic)
        if sources is None:
            return None
        if number is not None:
            return sources[number % len(sources)]
        # A record without a key has no order to keep: its id spreads it.
        spread = key if key is not None else dict(headers).get("ce_id", b"")
        return sources[self._partitioner.partition(spread, partitions=len(sources))]

    # ── which of them wait ────────────────────────────────────────────────────────────────────────────────────────

    def begin_scan(self, in_hand: Collection[int]) -> None:
        """What has failed and is due again is tried with the first row that this scan comes to."""
        self._closed.clear()
        for wait in self._waits.values():
            if wait.tried_with not in in_hand:
                wait.tried_with = None

    def end_scan(self) -> None:
        """A scan has come to its end: what was due, and no row came for, has nothing left that waits."""
        now = self._clock.monotonic()
        for destination, wait in tuple(self._waits.items()):
            if wait.until <= now and wait.tried_with is None and destination not in self._closed:
                del self._waits[destination]

    def take(self, row: OutboxRow) -> TopicPartition | None:
        """Where a scan may publish a row now; None closes the row's destination until the next scan."""
        topic = row.topic
        partition = self.partition_of(topic, row.key, row.headers, row.partition)
        if partition is None:
            self._closed.add(topic)  # it may be learnt before the next page, and earlier rows have been passed over
            return None
        if not self._waits and not self._closed:
            return partition
        key = ordering_of(row, row.position)
        if topic in self._closed or partition in self._closed or key in self._closed:
            return None
        if key in self._waits and self._waits[key].tried_with is None and self._waits[key].position != row.position:
            del self._waits[key]  # somebody has given that row up
        waiting: list[Destination] = [each for each in (topic, partition, key) if each in self._waits]
        self._closed.update(waiting)
        if not all(self._is_due(each) for each in waiting):
            return None
        for each in waiting:
            self._waits[each].tried_with = row.position
        return partition

    def is_open(self, partition: TopicPartition) -> bool:
        """Whether nothing is known against publishing to a partition now, from memory."""
        return not self._waits or (self._is_due(partition) and self._is_due(partition.topic))

    def close(self, destination: Destination) -> None:
        """Let a scan that is under way take nothing more for a destination: rows that it has passed were dropped."""
        self._closed.add(destination)

    def fail(self, row: OutboxRow, position: int, partition: TopicPartition, error: TransportError) -> None:
        """The log did not take a row."""
        self.close(partition)
        topic, number = partition
        if isinstance(error, RecordTooLarge):
            self._wait(ordering_of(row, position), error, FIRST_WAIT_OF_KEY, LONGEST_WAIT_OF_KEY, position=position)
            self._tell(
                position,
                "%s does not take event %d of the outbox, and later events of its key wait behind it: %s. Raise the "
                "topic's max.message.bytes, or give the event up: microflow outbox skip %d",
                *(topic, position, error, position),
            )
        elif isinstance(error, TopicRefused):
            self._wait(topic, error, FIRST_WAIT, LONGEST_WAIT)
            self._tell(topic, "the topic %s takes no events, and they wait in the outbox: %s", topic, error)
        else:
            self._wait(partition, error, FIRST_WAIT, LONGEST_WAIT)
            self._tell(topic, "%s[%d] does not take an event; trying again: %s", topic, number, error)

    def succeed(self, row: OutboxRow, position: int, partition: TopicPartition) -> None:
        """The log took a row. Whatever waited for this destination may be looked for again."""
        if self._waits:
            for destination in (partition, partition.topic, ordering_of(row, position)):
                self._recover(destination)

    @property
    def waiting(self) -> dict[Destination, TransportError]:
        """What waits, and why."""
        return {destination: wait.error for destination, wait in self._waits.items()}

    @property
    def is_hopeful(self) -> bool:
        """Whether something waits that may soon be taken: a partition, not a missing topic or a hopeless row."""
        return any(isinstance(each, TopicPartition) for each in self._waits)

    def next_try(self) -> timedelta | None:
        """How long until something is tried again for which the last scan has passed rows over; None: never."""
        waits = (self._waits[each] for each in self._closed if each in self._waits)
        untils = [wait.until for wait in waits if wait.tried_with is None]
        return max(min(untils) - self._clock.monotonic(), timedelta(0)) if untils else None

    def _is_due(self, destination: Destination) -> bool:
        wait = self._waits.get(destination)
        return wait is None or (wait.until <= self._clock.monotonic() and wait.tried_with is None)

    def _wait(
        self,
        destination: Destination,
        error: TransportError,
        first: timedelta,
        longest: timedelta,
        *,
        position: int | None = None,
    ) -> None:
        before = self._waits.get(destination)
        wait = first if before is None else before.next
        self._waits[destination] = _Wait(error, self._clock.monotonic() + wait, min(wait * 2, longest), position)

    def _recover(self, destination: Destination) -> None:
        if self._waits.pop(destination, None) is None:
            return
        self._wake()
        if not isinstance(destination, str | TopicPartition):
            return
        topic = destination if isinstance(destination, str) else destination.topic
        if topic in self._in_trouble:
            self._in_trouble.discard(topic)
            logger.warning("the topic %s takes events again", topic)

    def _tell(self, about: str | int, text: str, *args: object) -> None:
        now = self._clock.monotonic()
        if about not in self._told or now - self._told[about] >= TELL_EVERY:
            self._told[about] = now
            logger.warning(text, *args)
            if isinstance(about, str):
                self._in_trouble.add(about)


def ordering_of(row: OutboxRow, position: int) -> OrderingKey | int:
    """What a row's order is kept by: its topic and key; a row without a key stands for itself."""
    return position if row.key is None else OrderingKey(row.topic, row.key)
