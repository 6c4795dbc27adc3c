"""What the local log knows about its topics."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from datetime import datetime

from microflow.ports import Bounds, Topic, TopicPartition
from microflow.transports.local.log import Log


class LocalTopics:
    """`microflow.ports.Topics` on the local log."""

    def __init__(self, log: Log, *, cluster_id: str) -> None:
        self._log = log
        self._cluster_id = cluster_id

    async def cluster_id(self) -> str:
        return self._cluster_id

    async def describe(self, names: Collection[str] | None = None) -> Mapping[str, Topic]:
        stored = self._log.topics()
        return {name: found.topic for name, found in stored.items() if names is None or name in names}

    async def ensure(self, names: Collection[str]) -> frozenset[str]:
        await self._log.create(dict.fromkeys(names))
        return frozenset(names) - self._log.topics().keys()

    async def bounds(self, partitions: Collection[TopicPartition]) -> Mapping[TopicPartition, Bounds]:
        ids = self._log.partition_ids(partitions)
        bounds = self._log.bounds(ids.values())
        return {partition: bounds[number] for partition, number in ids.items()}

    async def offsets_at(
        self, partitions: Collection[TopicPartition], instant: datetime
    ) -> Mapping[TopicPartition, int]:
        ids = self._log.partition_ids(partitions)
        return {partition: self._log.offset_at(number, instant) for partition, number in ids.items()}
