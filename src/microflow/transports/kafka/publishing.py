"""Publishing: batches, one in flight for each partition, and after a failure nothing more of that partition.

aiokafka's idempotent producer has no way on after a failed batch (its sequence has a gap), and never gives up one that
the log does not take. So a producer that failed, or that ran out of time, is thrown away with all it holds, and the
next one begins at the first record that was not acknowledged.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from aiokafka import AIOKafkaProducer
from aiokafka import errors as kafka

from microflow.errors import LogRefused, RecordTooLarge, TopicRefused, TransportError
from microflow.ports import Record, TopicPartition
from microflow.transports.kafka import driver
from microflow.transports.kafka.client_settings import ClientSettings
from microflow.transports.kafka.errors import permission, permitting, transport_error
from microflow.transports.kafka.limits import TopicLimits
from microflow.transports.kafka.topics import LEGAL, KafkaTopics

logger = logging.getLogger("microflow.transports.kafka")

PATIENCE_WITH_THE_SLOW = 1.0
"""How long a partition is waited for that did not take anything last time: one that is away delays nobody else."""
STOP_WITHIN = 2.0
SPARE = 80
"""Bytes a record may take beyond its key, value and headers before they are counted one by one."""


@dataclass(slots=True)
class Stream:
    """What of a call goes to one partition, in order: indexes into the call's records, and how many are done."""

    partition: TopicPartition
    indexes: list[int] = field(default_factory=list)
    done: int = 0


class Publisher:
    """Publishes for a transport. Calls at the same time are independent, each in order."""

    def __init__(self, settings: ClientSettings, topics: KafkaTopics, limits: TopicLimits) -> None:
        self._settings = settings
        self._topics = topics
        self._limits = limits
        self._partitions: dict[str, int] = {}
        self._batch_bytes: dict[str, int] = {}
        self._slow: set[TopicPartition] = set()
        self._producer: AIOKafkaProducer | None = None
        self._in_flight: dict[AIOKafkaProducer, set[asyncio.Future[Any]]] = {}
        self._starting = asyncio.Lock()

    async def publish(self, records: Sequence[Record]) -> Sequence[TransportError | None]:
        """As `microflow.ports.Transport.publish`."""
        errors: list[TransportError | None] = [None] * len(records)
        streams = _streams(records)
        for stream, error in (await self._unknown(streams)).items():
            _fail(streams.pop(stream), errors, error)
        while streams:
            await self._publish_batches(streams, records, errors)
        return errors

    async def close(self) -> None:
        """Wait a little for what is under way, then let go of it."""
        producer, self._producer = self._producer, None
        if producer is not None:
            await driver.stop_producer(producer, within=STOP_WITHIN)

    async def _publish_batches(
        self, streams: dict[TopicPartition, Stream], records: Sequence[Record], errors: list[TransportError | None]
    ) -> None:
        """Send the next batch of each stream, and drop the streams that have ended, well or badly."""
        try:
            producer = await self._started({each.topic for each in streams})
        except TransportError as error:
            for stream in streams.values():
                _fail(stream, errors, error)
            streams.clear()
            return
        sent: dict[asyncio.Future[Any], tuple[Stream, int]] = {}
        for stream in tuple(streams.values()):
            batch, count = self._fill(producer, stream, records)
            if count == 0:
                record = records[stream.indexes[stream.done]]
                _fail(streams.pop(stream.partition), errors, self._too_large(record))
                continue
            sent[await self._send(producer, batch, stream.partition)] = stream, count
        in_flight = self._in_flight.setdefault(producer, set())
        in_flight |= sent.keys()
        failures = await self._outcomes(sent)
        in_flight -= sent.keys()
        for stream, count in sent.values():
            if stream.partition not in failures:
                stream.done += count
                if stream.done == len(stream.indexes):
                    del streams[stream.partition]
        if failures:
            await self._give_up(producer)
        for partition, failure in failures.items():
            stream, count = next(each for each in sent.values() if each[0].partition == partition)
            if isinstance(failure, RecordTooLarge) and count > 1:
                # The batch was too large, and none of its records need be: the topic's limit is not what we know.
                self._batch_bytes[partition.topic] = max(self._most_bytes(partition.topic) // 2, 1)
                continue
            _fail(streams.pop(partition), errors, failure)

    # ── batches ───────────────────────────────────────────────────────────────────────────────────────────────────

    def _fill(self, producer: AIOKafkaProducer, stream: Stream, records: Sequence[Record]) -> tuple[Any, int]:
        """A batch of the stream's next records, and how many they are: none if the first one is too large."""
        batch = producer.create_batch()
        append = batch.append
        largest = self._limits.record_bytes(stream.partition.topic)
        most = self._most_bytes(stream.partition.topic)
        careful = most < self._settings.max_batch_size
        count = 0
        for index in stream.indexes[stream.done :]:
            record = records[index]
            if careful and count and batch.size() + _upper_bound(record) > most:
                break
            if append(timestamp=None, key=record.key, value=record.value, headers=list(record.headers)) is None:
                break
            count += 1
            # The first record of a batch is taken whatever its size.
            if count == 1 and batch.size() > largest and _size(record) > largest:
                return batch, 0
        batch.close()
        return batch, count

    def _most_bytes(self, topic: str) -> int:
        known = min(self._settings.max_batch_size, self._limits.batch_bytes(topic))
        return self._batch_bytes.get(topic, known)

    def _too_large(self, record: Record) -> RecordTooLarge:
        return RecordTooLarge(
            f"A record of {_size(record):,} bytes for {record.topic}[{record.partition}]; the topic takes at most "
            f"{self._limits.record_bytes(record.topic):,}.",
            fix="Send less in one event, or raise max.message.bytes of the topic.",
        )

    async def _send(self, producer: AIOKafkaProducer, batch: Any, partition: TopicPartition) -> asyncio.Future[Any]:
        """Hand a batch to the producer; the future ends as the batch does."""

        async def send() -> None:
            try:
                await (await producer.send_batch(batch, partition.topic, partition=partition.partition))
            except AssertionError:
                # The producer's picture of the topic is older than ours: partitions were added.
                await producer.client.force_metadata_update()
                await (await producer.send_batch(batch, partition.topic, partition=partition.partition))

        if producer.client.cluster.leader_for_partition(partition) is None:
            return asyncio.get_running_loop().create_task(send())
        # The topic is known, so this does not wait: unless another call has a batch of the partition in hand.
        future: asyncio.Future[Any] = await producer.send_batch(batch, partition.topic, partition=partition.partition)
        return future

    async def _outcomes(
        self, sent: Mapping[asyncio.Future[Any], tuple[Stream, int]]
    ) -> dict[TopicPartition, TransportError]:
        """What became of the batches: the failures, by partition."""
        failures: dict[TopicPartition, TransportError] = {}
        waiting = set(sent)
        began = time.monotonic()
        patience = self._settings.delivery_timeout_ms / 1000
        while waiting:
            slow = {future for future in waiting if sent[future][0].partition in self._slow}
            left = (PATIENCE_WITH_THE_SLOW if slow else patience) - (time.monotonic() - began)
            done, waiting = await asyncio.wait(waiting, timeout=max(left, 0), return_when=asyncio.ALL_COMPLETED)
            for future in done:
                partition = sent[future][0].partition
                if (error := future.exception()) is None:
                    self._slow.discard(partition)
                else:
                    failures[partition] = transport_error(
                        error,
                        doing=f"to write to {_named(partition)}",
                        needs=permission("Write", [partition.topic]),
                    )
            if waiting:
                late = waiting & slow or waiting
                for future in late:
                    partition = sent[future][0].partition
                    future.cancel()
                    self._slow.add(partition)
                    failures[partition] = self._late(partition, sent[future][1])
                waiting -= late
        return failures

    def _late(self, partition: TopicPartition, count: int) -> TransportError:
        return TransportError(
            f"{_named(partition)} did not acknowledge {count} record{'s' if count > 1 else ''} in time.",
            why="The broker that leads it is away, or too few of its replicas are in sync.",
        )

    # ── producers ─────────────────────────────────────────────────────────────────────────────────────────────────

    async def _started(self, topics: Collection[str]) -> AIOKafkaProducer:
        if self._producer is not None:
            return self._producer
        async with self._starting:
            if self._producer is None:
                self._producer = await self._start(topics)
            return self._producer

    async def _start(self, topics: Collection[str]) -> AIOKafkaProducer:
        producer = AIOKafkaProducer(**self._settings.producer(), enable_idempotence=True, acks="all", linger_ms=0)
        try:
            async with asyncio.timeout(self._settings.delivery_timeout_ms / 1000):
                await producer.start()
        except (kafka.KafkaError, OSError, TimeoutError) as error:
            await driver.stop_producer(producer, within=0)
            if isinstance(error, kafka.ClusterAuthorizationFailedError):
                raise _denied(topics) from error
            raise transport_error(error, doing="to publish") from error
        return producer

    async def _give_up(self, producer: AIOKafkaProducer) -> None:
        """Let go of a producer that failed. What other calls have in it may still come through, if it does so soon."""
        if self._producer is producer:
            self._producer = None
        if in_flight := self._in_flight.pop(producer, None):
            await asyncio.wait(in_flight, timeout=PATIENCE_WITH_THE_SLOW)
        await driver.stop_producer(producer, within=0)

    # ── topics ────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _unknown(self, streams: Mapping[TopicPartition, Stream]) -> dict[TopicPartition, TransportError]:
        """The partitions that do not exist."""
        doubtful = [each for each in streams if each.partition >= self._partitions.get(each.topic, 0)]
        if not doubtful:
            return {}
        names = {each.topic for each in doubtful if LEGAL.fullmatch(each.topic)}
        try:
            found = await self._topics.describe(names)
        except TransportError as error:
            return dict.fromkeys(doubtful, error)
        self._partitions |= {name: topic.partitions for name, topic in found.items()}
        for name in names - found.keys():
            self._partitions.pop(name, None)
        return {
            each: _does_not_exist(each, self._partitions.get(each.topic, 0))
            for each in doubtful
            if not 0 <= each.partition < self._partitions.get(each.topic, 0)
        }


def _streams(records: Sequence[Record]) -> dict[TopicPartition, Stream]:
    streams: dict[TopicPartition, Stream] = {}
    for index, record in enumerate(records):
        stream = streams.get(partition := record.source)
        if stream is None:
            stream = streams[partition] = Stream(partition)
        stream.indexes.append(index)
    return streams


def _fail(stream: Stream, errors: list[TransportError | None], error: TransportError) -> None:
    """Fail what is left of a stream: the first with the error, the others because of it."""
    first, *later = stream.indexes[stream.done :]
    errors[first] = error
    behind = TransportError(f"{_named(stream.partition)} was not written to any more: {error.what}", why=error.why)
    for index in later:
        errors[index] = behind if isinstance(error, RecordTooLarge) else error


def _denied(topics: Collection[str]) -> LogRefused:
    return LogRefused(
        "Kafka does not permit us to publish anything.",
        why="The user we are connected as may write to no topic at all.",
        fix=permitting(permission("Write", topics)),
    )


def _does_not_exist(partition: TopicPartition, count: int) -> TopicRefused:
    if count:
        return TopicRefused(f"{_named(partition)} does not exist: {partition.topic} has {count} partitions.")
    if not LEGAL.fullmatch(partition.topic):
        return TopicRefused(
            f"No topic can be called {partition.topic!r}.", why="Letters, digits, . _ and - make up to 249 characters."
        )
    return TopicRefused(f"The topic {partition.topic} does not exist.", fix="microflow topics apply")


def _size(record: Record) -> int:
    content = sum(len(name.encode()) + len(value) for name, value in record.headers)
    return len(record.key or b"") + len(record.value or b"") + content


def _upper_bound(record: Record) -> int:
    size = SPARE + len(record.key or b"") + len(record.value or b"")
    return size + sum(10 + 4 * len(name) + len(value) for name, value in record.headers)


def _named(partition: TopicPartition) -> str:
    return f"{partition.topic}[{partition.partition}]"
