"""Which partitions this process owns, and under which epochs: what every transaction is fenced by."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping

from microflow.errors import Fenced
from microflow.ports import TopicPartition


class Assignment:
    """The epochs of the partitions that are owned now. A partition whose epoch turned out to be over is `lost`.

    Shares (see `shares`) are owned beside them: the log knows nothing of those, and one that is lost is gone. `changes`
    counts how often partitions were given to this process; `gone` is called when something is owned no more.
    """

    def __init__(self, *, gone: Callable[[], None] = lambda: None) -> None:
        self._tell_gone = gone
        self._epochs: dict[TopicPartition, int] = {}
        self._shares: dict[TopicPartition, int] = {}
        self.lost: set[TopicPartition] = set()
        self.changes = 0

    @property
    def partitions(self) -> Collection[TopicPartition]:
        return self._epochs.keys()

    def owns(self, home: TopicPartition) -> bool:
        return home in self._epochs or home in self._shares

    def own(self, epochs: Mapping[TopicPartition, int]) -> None:
        """Begin to own partitions under these epochs."""
        self._epochs.update(epochs)
        self.lost.difference_update(epochs)
        self.changes += 1

    def own_share(self, home: TopicPartition, *, epoch: int) -> None:
        """Begin to own a share."""
        self._shares[home] = epoch

    def disown(self, partitions: Iterable[TopicPartition]) -> None:
        """They were taken away."""
        for partition in partitions:
            self._epochs.pop(partition, None)
            self._shares.pop(partition, None)
            self.lost.discard(partition)
        self._tell_gone()

    def lose(self, partitions: Iterable[TopicPartition]) -> None:
        """A fence refused their epochs: somebody else began a newer one."""
        for partition in partitions:
            self._shares.pop(partition, None)
            if self._epochs.pop(partition, None) is not None:
                self.lost.add(partition)
        self._tell_gone()

    def epoch(self, home: TopicPartition) -> int | None:
        """The epoch of a partition or share; None if it is not owned."""
        return self._epochs.get(home, self._shares.get(home))

    def epochs(self, homes: Iterable[TopicPartition]) -> Mapping[TopicPartition, int]:
        """The epochs to fence a transaction with. Raises Fenced for partitions that are not owned any more."""
        epochs = {home: self.epoch(home) for home in homes}
        owned = {home: epoch for home, epoch in epochs.items() if epoch is not None}
        if len(owned) < len(epochs):
            raise Fenced(epochs.keys() - owned.keys())
        return owned
