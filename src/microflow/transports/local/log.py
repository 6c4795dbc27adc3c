"""The log's tables: topics, partitions and the records in them. Reading is synchronous, writing is one transaction."""

from __future__ import annotations

import contextlib
import json
import logging
import re
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from microflow.embedded.database import Database
from microflow.embedded.headers import encode_headers
from microflow.errors import RecordTooLarge, TransportError
from microflow.ports import Bounds, Clock, Record, Topic, TopicPartition
from microflow.transports.local.errors import as_transport_errors
from microflow.transports.local.format import SQL

OFFSET_BITS = 40
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MICROSECOND = timedelta(microseconds=1)
LEGAL_TOPIC = re.compile(r"(?!\.\.?$)[a-zA-Z0-9._-]{1,249}")
WAIT_FOR_LOCK = timedelta(seconds=30)
CLEAN_EVERY = timedelta(seconds=30)
CLEAN_AT_ONCE = 2000
ROOM_TO_GROW = 256
"""The ids that are kept free for the partitions of one topic."""

logger = logging.getLogger("microflow.transports.local")


@dataclass(frozen=True, slots=True)
class StoredTopic:
    """A topic and where its partitions are: their ids follow each other from `first_partition` on."""

    topic: Topic
    first_partition: int

    def partition_ids(self) -> Iterator[tuple[TopicPartition, int]]:
        for partition in range(self.topic.partitions):
            yield TopicPartition(self.topic.name, partition), self.first_partition + partition


@dataclass(slots=True)
class Tail:
    """Where the next record of a partition goes, while a batch is being appended."""

    partition_id: int
    ending: int
    newest: int
    error: TransportError | None = None
    grown: bool = False


@dataclass(slots=True)
class Batch:
    """What one `append` is going to write, and what became of each record."""

    errors: list[TransportError | None]
    rows: list[tuple[int, int, bytes | None, bytes | None, bytes]] = field(default_factory=list)
    tails: dict[tuple[str, int], Tail] = field(default_factory=dict)


class Log:
    """The tables of one file. Topics are never deleted and lose no partition, so what is known of one stays true."""

    def __init__(
        self,
        database: Database,
        *,
        clock: Clock,
        new_id: Callable[[], str],
        partitions: int,
        retention: timedelta,
        max_record_bytes: int,
        topic_changed: Callable[[sqlite3.Connection, str], None],
    ) -> None:
        self.database = database
        self._clock = clock
        self._new_id = new_id
        self._partitions = partitions
        self._retention = retention
        self.max_record_bytes = max_record_bytes
        self._topic_changed = topic_changed
        self._topics: dict[str, StoredTopic] = {}
        self._cleaned: timedelta | None = None

    # ── topics ────────────────────────────────────────────────────────────────────────────────────────────────────

    def topics(self) -> dict[str, StoredTopic]:
        """All topics that exist now."""
        self._topics = {row[0]: _stored_topic(row) for row in self._select("all topics")}
        return self._topics

    def partition_id(self, partition: TopicPartition) -> int | None:
        """The id of a partition, None if it does not exist."""
        stored = self._topics.get(partition.topic)
        if stored is None or partition.partition >= stored.topic.partitions:
            stored = self.topics().get(partition.topic)
        if stored is None or not 0 <= partition.partition < stored.topic.partitions:
            return None
        return stored.first_partition + partition.partition

    def partition_ids(self, partitions: Iterable[TopicPartition]) -> dict[TopicPartition, int]:
        """The ids of those partitions that exist."""
        found = ((partition, self.partition_id(partition)) for partition in partitions)
        return {partition: number for partition, number in found if number is not None}

    async def create(self, partitions: Mapping[str, int | None]) -> None:
        """Create those topics that do not exist and may have such a name, each with so many partitions."""
        existing = self.topics()
        missing = [name for name in partitions if name not in existing and LEGAL_TOPIC.fullmatch(name)]
        if missing:
            async with self.writing() as connection:
                for name in missing:
                    self._find_or_create(connection, name, partitions[name])
            self.topics()

    async def grow(self, name: str, partitions: int) -> None:
        """Give a topic so many partitions, if it has fewer. Raises TransportError if there is no room for them."""
        async with self.writing() as connection:
            row = connection.execute(SQL["topic"], (name,)).fetchone()
            if row is None:
                raise TransportError(f"the log has no topic {name}")
            _, _, before, first = row
            if partitions <= before:
                return
            (behind,) = connection.execute(SQL["next topic"], (first,)).fetchone()
            most = ROOM_TO_GROW if behind is None else behind - first
            if partitions > most:
                raise TransportError(f"in the local log the topic {name} can have {most} partitions at most")
            connection.execute(SQL["grow topic"], (partitions, name))
            self._add_partitions(connection, name, first, range(before, partitions))
        self.topics()

    def _find_or_create(self, connection: sqlite3.Connection, name: str, partitions: int | None = None) -> StoredTopic:
        row = connection.execute(SQL["topic"], (name,)).fetchone()
        if row is None:
            (first,) = connection.execute(SQL["next partition"], {"room": ROOM_TO_GROW}).fetchone()
            row = (name, self._new_id(), partitions or self._partitions, first)
            connection.execute(SQL["add topic"], row)
            self._add_partitions(connection, name, first, range(row[2]))
        return _stored_topic(row)

    def _add_partitions(self, connection: sqlite3.Connection, topic: str, first: int, numbers: range) -> None:
        connection.executemany(SQL["add partition"], [(first + number, topic, number) for number in numbers])
        self._topic_changed(connection, topic)

    # ── records ───────────────────────────────────────────────────────────────────────────────────────────────────

    async def append(self, records: Sequence[Record]) -> Sequence[TransportError | None]:
        """Append records in one transaction; for each None, or why it was not taken."""
        blobs = [encode_headers(record.headers) for record in records]
        batch = Batch(errors=[None] * len(records))
        try:
            async with self.writing() as connection:
                self._fill(connection, batch, records, blobs)
                connection.executemany(SQL["append"], batch.rows)
                grown = [tail for tail in batch.tails.values() if tail.grown]
                advanced = [(tail.ending, tail.newest, tail.partition_id) for tail in grown]
                connection.executemany(SQL["advance"], advanced)
        except TransportError as error:
            return [error] * len(records)
        if any(topic not in self._topics for topic, _ in batch.tails):
            self.topics()
        return batch.errors

    def _fill(
        self, connection: sqlite3.Connection, batch: Batch, records: Sequence[Record], blobs: Sequence[bytes]
    ) -> None:
        now = (self._clock.now() - EPOCH) // MICROSECOND
        tails, rows = batch.tails, batch.rows
        for index, (record, blob) in enumerate(zip(records, blobs, strict=True)):
            source = (record.topic, record.partition)
            tail = tails.get(source)
            if tail is None:
                tail = tails[source] = self._tail(connection, record, now=now)
            key, value = record.key, record.value
            size = len(blob) + (len(key) if key else 0) + (len(value) if value else 0)
            if tail.error is None and size > self.max_record_bytes:
                tail.error = self._too_large(record)
            if tail.error is not None:
                batch.errors[index] = tail.error
                continue
            rows.append((tail.partition_id << OFFSET_BITS | tail.ending, tail.newest, key, value, blob))
            tail.ending += 1
            tail.grown = True

    def _tail(self, connection: sqlite3.Connection, record: Record, *, now: int) -> Tail:
        if not LEGAL_TOPIC.fullmatch(record.topic):
            return Tail(0, 0, 0, error=TransportError(f"{record.topic!r} is no topic's name"))
        stored = self._topics.get(record.topic)
        if stored is None or record.partition >= stored.topic.partitions:
            stored = self._find_or_create(connection, record.topic)
        count = stored.topic.partitions
        if not 0 <= record.partition < count:
            what = f"topic {record.topic} has no partition {record.partition}, only 0 to {count - 1}"
            return Tail(0, 0, 0, error=TransportError(what))
        partition_id = stored.first_partition + record.partition
        ending, newest = connection.execute(SQL["tail"], (partition_id,)).fetchone()
        return Tail(partition_id, ending, max(newest, now))

    def _too_large(self, record: Record) -> TransportError | None:
        size = len(record.key or b"") + len(record.value or b"")
        size += sum(len(name.encode("utf-8", "surrogatepass")) + len(value) for name, value in record.headers)
        if size <= self.max_record_bytes:
            return None
        return RecordTooLarge(
            f"a record of {size} bytes for {record.topic}[{record.partition}]; the log takes {self.max_record_bytes}"
        )

    def bounds(self, partition_ids: Iterable[int]) -> dict[int, Bounds]:
        """Where partitions begin and end now."""
        rows = self._select("bounds", json.dumps(list(partition_ids)))
        return {partition_id: Bounds(beginning, ending) for partition_id, beginning, ending in rows}

    def lags(self, topic: str) -> dict[str, int]:
        """How many records of a topic are before each group that reads it, or has committed offsets of it."""
        return dict(self._select("lags", topic))

    def offset_at(self, partition_id: int, instant: datetime) -> int:
        """The first offset whose record is not older than an instant. Timestamps never go back in a partition."""
        wanted = (instant - EPOCH) // MICROSECOND
        low, high = self.bounds([partition_id])[partition_id]
        while low < high:
            middle = (low + high) // 2
            found = self._select("timestamp", partition_id << OFFSET_BITS | middle)
            if not found or found[0][0] < wanted:
                low = middle + 1
            else:
                high = middle
        return low

    async def clean(self) -> None:
        """Delete some records that are older than the retention, if it is time to. Never fails: it can wait."""
        now = self._clock.monotonic()
        if self._cleaned is not None and now - self._cleaned < CLEAN_EVERY:
            return
        try:
            if not await self.delete_expired(limit=CLEAN_AT_ONCE):
                self._cleaned = now
        except TransportError as error:
            self._cleaned = now
            logger.warning("old records cannot be deleted: %s", error)

    async def delete_expired(self, *, limit: int) -> int:
        """Delete records older than the retention, about so many; return how many."""
        cutoff = (self._clock.now() - self._retention - EPOCH) // MICROSECOND
        expired: list[tuple[int, int, int]] = []
        count = 0
        for partition_id, beginning in self._select("beginnings", cutoff):
            kept = self._first_kept(partition_id, beginning, cutoff=cutoff, limit=limit - count)
            expired.append((partition_id, beginning, kept))
            count += kept - beginning
            if count >= limit:
                break
        if expired:
            async with self.writing() as connection:
                for partition_id, beginning, kept in expired:
                    first = partition_id << OFFSET_BITS
                    connection.execute(SQL["delete records"], (first | beginning, first | kept))
                    connection.execute(SQL["move beginning"], (kept, partition_id))
        return count

    def _first_kept(self, partition_id: int, beginning: int, *, cutoff: int, limit: int) -> int:
        first = partition_id << OFFSET_BITS
        oldest: list[tuple[int]] = self._select("timestamps", first | beginning, first + (1 << OFFSET_BITS), limit)
        return beginning + sum(timestamp < cutoff for (timestamp,) in oldest)

    # ── the file ──────────────────────────────────────────────────────────────────────────────────────────────────

    @contextlib.asynccontextmanager
    async def writing(self, *, patience: timedelta = WAIT_FOR_LOCK) -> AsyncIterator[sqlite3.Connection]:
        """One transaction; whatever fails in it is a TransportError."""
        with as_transport_errors(self.database.path):
            async with self.database.writing(patience=patience) as connection:
                yield connection

    @contextlib.contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """A connection on which all statements see the same commits. Must not be held over an await."""
        with as_transport_errors(self.database.path), self.database.reading() as connection:
            yield connection

    def check_still_there(self) -> None:
        """Raise LogGone if the file was deleted or replaced."""
        with as_transport_errors(self.database.path):
            self.database.check_still_there()

    def _select(self, name: str, *args: object) -> list[Any]:
        with as_transport_errors(self.database.path):
            return self.database.read(SQL[name], args)


def _stored_topic(row: tuple[str, str, int, int]) -> StoredTopic:
    name, incarnation, partitions, first_partition = row
    return StoredTopic(Topic(name, partitions, incarnation), first_partition)
