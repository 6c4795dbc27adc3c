"""Which partitions this process owns, and under which epochs: what every transaction is fenced by."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from microflow.errors import Fenced
from microflow.ports import TopicPartition


class Assignment:
    """The epochs of the partitions that are owned now. A partition whose epoch turned out to be over is `lost`."""

    def __init__(self) -> None:
        self._epochs: dict[TopicPartition, int] = {}
        self.lost: set[TopicPartition] = set()

    @property
    def partitions(self) -> Collection[TopicPartition]:
        return self._epochs.keys()

    def owns(self, partition: TopicPartition) -> bool:
        return partition in self._epochs

    def own(self, epochs: Mapping[TopicPartition, int]) -> None:
        """Begin to own partitions under these epochs."""
        self._epochs.update(epochs)
        self.lost.difference_update(epochs)

    def disown(self, partitions: Iterable[TopicPartition]) -> None:
        """They were taken away."""
        for partition in partitions:
            self._epochs.pop(partition, None)
            self.lost.discard(partition)

    def lose(self, partitions: Iterable[TopicPartition]) -> None:
        """A fence refused their epochs: somebody else began a newer one."""
        for partition in partitions:
            if self._epochs.pop(partition, None) is not None:
                self.lost.add(partition)

    def epoch(self, partition: TopicPartition) -> int | None:
        """The epoch of a partition; None if it is not owned."""
        return self._epochs.get(partition)

    def epochs(self, partitions: Iterable[TopicPartition]) -> Mapping[TopicPartition, int]:
        """The epochs to fence a transaction with. Raises Fenced for partitions that are not owned any more."""
        wanted = tuple(partitions)
        if gone := [partition for partition in wanted if partition not in self._epochs]:
            raise Fenced(gone)
        return {partition: self._epochs[partition] for partition in wanted}
