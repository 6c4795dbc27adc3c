"""Laying out the topics of the local log: it has partitions, one copy of everything, and one retention for all."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from microflow.ports import TopicLayout
from microflow.transports.local.log import Log


class LocalAdministration:
    """`microflow.ports.Administration` on the local log."""

    def __init__(self, log: Log) -> None:
        self._log = log

    async def layouts(self, names: Collection[str]) -> Mapping[str, TopicLayout]:
        stored = self._log.topics()
        return {name: TopicLayout(partitions=stored[name].topic.partitions) for name in names if name in stored}

    async def create(self, layouts: Mapping[str, TopicLayout]) -> None:
        await self._log.create({name: layout.partitions for name, layout in layouts.items()})

    async def grow(self, partitions: Mapping[str, int]) -> None:
        for name, count in partitions.items():
            await self._log.grow(name, count)

    async def lags(self, topic: str) -> Mapping[str, int]:
        return self._log.lags(topic)

    async def alter(self, layouts: Mapping[str, TopicLayout]) -> None:
        """There is nothing to alter: a file has one copy, and the log one retention."""
