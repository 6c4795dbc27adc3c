"""Watermarks: for each partition the lowest offset that is not yet committed, whoever finished first.

A lane's own highest offset would be wrong: another lane, or a slow handler, may still hold an earlier one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable, Mapping

from microflow.ports import TopicPartition


class _Partition:
    def __init__(self, offset: int) -> None:
        self.position = offset  # where reading goes on
        self.stored = offset  # what the database has
        self.open: deque[int] = deque()  # read, in order; those in `done` are finished
        self.done: set[int] = set()

    def low(self, finished: Collection[int] = ()) -> int:
        if not finished:
            return self.open[0] if self.open else self.position
        for offset in self.open:
            if offset not in self.done and offset not in finished:
                return offset
        return self.position


class Watermarks:
    """Offsets of the owned partitions, from being read to being finished."""

    def __init__(self) -> None:
        self._partitions: dict[TopicPartition, _Partition] = {}
        self._unfinished = 0

    @property
    def unfinished(self) -> int:
        """How many records have been read and are not finished, over all partitions."""
        return self._unfinished

    def unfinished_of(self, topics: Collection[str]) -> int:
        """How many of them are of some topics."""
        return sum(
            len(state.open) - len(state.done) for source, state in self._partitions.items() if source.topic in topics
        )

    def begin(self, partition: TopicPartition, offset: int) -> None:
        """Start at an offset that the database has."""
        self.forget([partition])
        self._partitions[partition] = _Partition(offset)

    def forget(self, partitions: Iterable[TopicPartition]) -> None:
        for partition in partitions:
            state = self._partitions.pop(partition, None)
            if state is not None:
                self._unfinished -= len(state.open) - len(state.done)

    def read(self, partition: TopicPartition, offset: int) -> bool:
        """A record was read; False if it was before (it stands below where reading goes on)."""
        state = self._partitions[partition]
        if offset < state.position:
            return False
        state.position = offset + 1
        state.open.append(offset)
        self._unfinished += 1
        return True

    def finish(self, partition: TopicPartition, offset: int) -> None:
        """Nothing of a record is left to be done. Those of partitions that were taken away do not count."""
        state = self._partitions.get(partition)
        if (
            state is None
            or offset in state.done
            or not state.open
            or offset < state.open[0]
            or offset >= state.position
        ):
            return
        state.done.add(offset)
        self._unfinished -= 1
        while state.open and state.open[0] in state.done:
            state.done.remove(state.open.popleft())

    def after(self, finished: Mapping[TopicPartition, Collection[int]]) -> dict[TopicPartition, int]:
        """What the watermarks will be once these offsets are finished too."""
        return {
            partition: self._partitions[partition].low(offsets)
            for partition, offsets in finished.items()
            if partition in self._partitions
        }

    def low(self, partition: TopicPartition) -> int:
        """The watermark of one partition as it is now."""
        return self._partitions[partition].low()

    def distance(self, partition: TopicPartition) -> int:
        """How far a partition has been read beyond its watermark."""
        state = self._partitions[partition]
        return state.position - state.low()

    def stored(self, watermarks: Mapping[TopicPartition, int]) -> None:
        """A transaction has stored these."""
        for partition, offset in watermarks.items():
            state = self._partitions.get(partition)
            if state is not None:
                state.stored = max(state.stored, offset)

    def unstored(self) -> dict[TopicPartition, int]:
        """Watermarks that have moved without a transaction: records skipped, transactions that overlapped."""
        return {partition: state.low() for partition, state in self._partitions.items() if state.low() > state.stored}

    def lows(self) -> dict[TopicPartition, int]:
        """Every watermark as it is now."""
        return {partition: state.low() for partition, state in self._partitions.items()}

    def positions(self) -> dict[TopicPartition, int]:
        """Where reading goes on, for every partition."""
        return {partition: state.position for partition, state in self._partitions.items()}
