"""Reading the log as an onlooker: every record of some topics, outside all groups, disturbing nobody."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta

from microflow.ports import Record, Subscription, TopicPartition, Transport


class LogReader:
    """Reads topics from their beginning, or from where they end now. It is its subscription's listener."""

    def __init__(self, positions: Mapping[TopicPartition, int]) -> None:
        self._positions = dict(positions)
        self._subscription: Subscription | None = None

    @classmethod
    @asynccontextmanager
    async def open(
        cls, transport: Transport, topics: Collection[str], *, from_end: bool = False
    ) -> AsyncIterator[LogReader]:
        """A reader of these topics. With `from_end` it returns once its place in each is known."""
        reader = cls(await _ends(transport, topics) if from_end else {})
        async with transport.subscribe(topics, group=None, listener=reader) as subscription:
            reader._subscription = subscription
            yield reader

    async def read(self, *, wait: timedelta, max_records: int = 500) -> Sequence[Record]:
        """The next records, those of a partition in order; empty after `wait` without any. Raises TransportError."""
        assert self._subscription is not None
        records = await self._subscription.fetch(max_records=max_records, wait=wait)
        for record in records:
            self._positions[record.source] = record.offset + 1
        return records

    async def revoked(self, partitions: frozenset[TopicPartition]) -> None:
        """Nothing is lost: the places are remembered here."""

    async def assigned(self, partitions: frozenset[TopicPartition]) -> None:
        """Go on where it was; a partition of a topic that has just appeared is read from its beginning."""
        assert self._subscription is not None
        for partition in partitions:
            self._subscription.seek(partition, self._positions.get(partition, 0))


async def _ends(transport: Transport, topics: Collection[str]) -> dict[TopicPartition, int]:
    described = await transport.topics.describe(topics)
    partitions = [
        TopicPartition(topic.name, number) for topic in described.values() for number in range(topic.partitions)
    ]
    return {partition: bound.end for partition, bound in (await transport.topics.bounds(partitions)).items()}
