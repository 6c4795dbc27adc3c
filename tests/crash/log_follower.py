"""All of a Kafka log, read from outside by a plain consumer and kept, so that every look reads only what is new."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError

from tests.crash.readings import PARTITIONS, Logged, logged

WAIT = 200


class LogFollower:
    """Reads these topics from their beginnings, whatever a group has committed. `prefix` is taken off their names."""

    def __init__(self, consumer: AIOKafkaConsumer, topics: Collection[str], *, prefix: str) -> None:
        self._consumer = consumer
        self._partitions = [TopicPartition(prefix + topic, number) for topic in topics for number in range(PARTITIONS)]
        self._next = dict.fromkeys(self._partitions, 0)
        self._records: dict[TopicPartition, list[Logged]] = {partition: [] for partition in self._partitions}
        self._prefix = prefix
        consumer.assign(self._partitions)

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
                self._records[partition].append(
                    logged(topic, partition.partition, record.offset, record.key, self._without_prefix(headers))
                )
                self._next[partition] = record.offset + 1

    def _without_prefix(self, headers: dict[str, str]) -> dict[str, str]:
        place, _, service = headers["ce_source"].rpartition("/")
        return {**headers, "ce_source": f"{place}/{service.removeprefix(self._prefix)}"}
