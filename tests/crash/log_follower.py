"""All of a Kafka log, read from outside by a plain consumer and kept, so that every look reads only what is new."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping, Sequence

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError

from tests.crash.readings import PARTITIONS, Logged, logged

WAIT = 200


class LogFollower:
    """Reads these topics from their beginnings, whatever a group has committed. `prefix` is taken off their names."""

    def __init__(self, consumer: AIOKafkaConsumer, topics: Collection[str], *, prefix: str) -> None:
        self._consumer = consumer
        self._counts = {prefix + topic: PARTITIONS for topic in topics}
        self._next: dict[TopicPartition, int] = {}
        self._records: dict[TopicPartition, list[Logged]] = {}
        self._prefix = prefix
        self._follow()

    @classmethod
    async def start(cls, bootstrap: str, topics: Collection[str], *, prefix: str) -> LogFollower:
        consumer = AIOKafkaConsumer(
            bootstrap_servers=bootstrap,
            auto_offset_reset="earliest",
            enable_auto_commit=False,
            request_timeout_ms=3000,
            metadata_max_age_ms=1000,
        )
        await consumer.start()
        return cls(consumer, topics, prefix=prefix)

    async def stop(self) -> None:
        await self._consumer.stop()

    async def read(self) -> Sequence[Logged]:
        """All records up to where the log ends now, in order of topics, partitions and offsets."""
        ends = await self._consumer.end_offsets(self._partitions)
        while any(self._next[partition] < ends[partition] for partition in self._partitions):
            await self._read_on()
        return [record for partition in self._partitions for record in self._records[partition]]

    async def ends(self, topic: str) -> Mapping[int, int]:
        """Where each partition of a topic ends now."""
        await self.read()
        return {each.partition: offset for each, offset in self._next.items() if each.topic == self._prefix + topic}

    async def grown(self, topic: str, partitions: int) -> None:
        """A topic has so many partitions now."""
        self._counts[self._prefix + topic] = partitions
        self._follow()

    async def created_again(self, topic: str) -> None:
        """A topic begins anew, and what was in the old one stays known."""
        for partition in self._partitions:
            if partition.topic == self._prefix + topic:
                self._next[partition] = 0
        self._follow()

    async def forget(self, topic: str, *, unread: Mapping[int, int]) -> None:
        """The records of these partitions from these offsets on are gone, and nobody has read them."""
        for number, offset in unread.items():
            partition = TopicPartition(self._prefix + topic, number)
            self._records[partition] = [each for each in self._records[partition] if each.offset < offset]

    def _follow(self) -> None:
        self._partitions = [TopicPartition(name, each) for name, count in self._counts.items() for each in range(count)]
        self._consumer.assign(self._partitions)
        for partition in self._partitions:
            self._records.setdefault(partition, [])
            self._consumer.seek(partition, self._next.setdefault(partition, 0))

    async def all_ends(self) -> dict[tuple[str, int], int]:
        """Where the log ends now, by topic and partition."""
        ends = await self._consumer.end_offsets(self._partitions)
        return {(each.topic.removeprefix(self._prefix), each.partition): end for each, end in ends.items()}

    async def _read_on(self) -> None:
        try:
            batches = await self._consumer.getmany(timeout_ms=WAIT)
        except (KafkaError, asyncio.CancelledError):
            # What it has read and not returned would be passed over.
            for partition in self._partitions:
                self._consumer.seek(partition, self._next[partition])
            raise
        for partition, records in batches.items():
            for record in records:
                headers = {name: value.decode() for name, value in record.headers}
                topic = partition.topic.removeprefix(self._prefix)
                headers = self._without_prefix(headers)
                self._records[partition].append(
                    logged(topic, partition.partition, record.offset, record.key, headers, at=record.timestamp)
                )
                self._next[partition] = record.offset + 1

    def _without_prefix(self, headers: dict[str, str]) -> dict[str, str]:
        place, _, service = headers["ce_source"].rpartition("/")
        return {**headers, "ce_source": f"{place}/{service.removeprefix(self._prefix)}"}
