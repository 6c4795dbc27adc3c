"""Reading a part of the log once more: of some partitions what lies from one offset up to another, and no further."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import NamedTuple

from microflow.envelopes import EPOCH
from microflow.ports import Record, Subscription, TopicPartition, Transport

HELD = 500
"""So many records of a partition wait for those of the others at most, or one fetch more."""


class Stretch(NamedTuple):
    """The records of a partition from `first` on and before `until`."""

    first: int
    until: int


class Replay:
    """Reads stretches of the log as an onlooker. It is its subscription's listener.

    The records of a partition come in their order, those of several as their timestamps say: so a key's records do,
    although the key has moved to another partition since, when the topic got more of them.
    """

    def __init__(self, stretches: Mapping[TopicPartition, Stretch]) -> None:
        self._positions = {partition: stretch.first for partition, stretch in stretches.items()}
        self._untils = {partition: stretch.until for partition, stretch in stretches.items()}
        self._held: dict[TopicPartition, deque[Record]] = {partition: deque() for partition in stretches}
        self._heads: list[tuple[float, TopicPartition]] = []
        self._awaited = set(stretches)
        self._paused: set[TopicPartition] = set()
        self._subscription: Subscription | None = None

    @classmethod
    @asynccontextmanager
    async def open(cls, transport: Transport, stretches: Mapping[TopicPartition, Stretch]) -> AsyncIterator[Replay]:
        """A reader of these stretches, none of which is empty."""
        replay = cls(stretches)
        topics = {partition.topic for partition in stretches}
        async with transport.subscribe(topics, group=None, listener=replay) as subscription:
            replay._subscription = subscription
            yield replay

    @property
    def is_over(self) -> bool:
        """Whether everything was read."""
        return not self._heads and not self._awaited

    @property
    def missing(self) -> Mapping[TopicPartition, Stretch]:
        """What of the partitions was not fetched yet that the next record has to wait for."""
        return {each: Stretch(self._positions[each], self._untils[each]) for each in sorted(self._awaited)}

    async def read(self, *, wait: timedelta, max_records: int) -> Sequence[Record]:
        """The next records; empty at the end, or after `wait` without any. Raises TransportError."""
        assert self._subscription is not None
        while not (records := self._take(max_records)) and self._awaited:
            self._pause_what_waits()
            fetched = await self._subscription.fetch(max_records=HELD, wait=wait)
            if not fetched:
                break
            self._hold(fetched)
        return records

    def pass_over(self, partition: TopicPartition, offset: int) -> None:
        """The log has nothing of a partition before an offset any more."""
        self._positions[partition] = max(self._positions[partition], offset)
        if self._positions[partition] >= self._untils[partition]:
            self._awaited.discard(partition)

    async def revoked(self, partitions: frozenset[TopicPartition]) -> None:
        """Nothing is lost: the places are remembered here."""

    async def assigned(self, partitions: frozenset[TopicPartition]) -> None:
        """Go on where it was. What is not replayed is not read."""
        assert self._subscription is not None
        for partition in partitions:
            self._subscription.seek(partition, self._positions.get(partition, 0))
        self._paused = {each for each in partitions if self._rests(each)}
        self._subscription.pause(self._paused)

    # ── the order of records ──────────────────────────────────────────────────────────────────────────────────────

    def _hold(self, records: Collection[Record]) -> None:
        for record in records:
            source = record.source
            if source not in self._untils or record.offset < self._positions[source]:
                continue  # not replayed, or read before a reassignment
            until = self._untils[source]
            if record.offset < until:
                held = self._held[source]
                held.append(record)
                if len(held) == 1:
                    self._await_no_more(source)
            self._positions[source] = record.offset + 1
            if record.offset + 1 >= until:
                self._awaited.discard(source)

    def _take(self, most: int) -> list[Record]:
        """The oldest of what is held, as long as nothing older can come."""
        taken: list[Record] = []
        while self._heads and not self._awaited and len(taken) < most:
            _, source = heapq.heappop(self._heads)
            held = self._held[source]
            taken.append(held.popleft())
            if held:
                self._await_no_more(source)
            elif self._positions[source] < self._untils[source]:
                self._awaited.add(source)
        return taken

    def _await_no_more(self, source: TopicPartition) -> None:
        self._awaited.discard(source)
        heapq.heappush(self._heads, ((self._held[source][0].timestamp or EPOCH).timestamp(), source))

    # ── what is fetched ───────────────────────────────────────────────────────────────────────────────────────────

    def _pause_what_waits(self) -> None:
        assert self._subscription is not None
        resting = {each for each in self._untils if self._rests(each)}
        if new := resting - self._paused:
            self._subscription.pause(new)
        if over := (self._paused & self._untils.keys()) - resting:
            self._subscription.resume(over)
        self._paused = (self._paused - self._untils.keys()) | resting

    def _rests(self, partition: TopicPartition) -> bool:
        """Whether nothing of a partition is wanted now, or at all."""
        return self._positions.get(partition, 0) >= self._untils.get(partition, 0) or len(self._held[partition]) >= HELD
