"""Whether a consumer gets on: aiokafka can stop fetching, or lose its group, and say nothing."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import NamedTuple

from microflow.ports import TopicPartition


class Place(NamedTuple):
    """Where a partition's reading stood, and since when there was something to read behind that."""

    position: int
    since: float


class Progress:
    """Remembers where reading stands. A partition is stalled if there was something to read in it all the time, and
    somebody who wanted it, and its position did not move for `patience` seconds."""

    def __init__(self, *, patience: float) -> None:
        self._patience = patience
        self._places: dict[TopicPartition, Place] = {}

    def look(
        self, now: float, *, positions: Mapping[TopicPartition, int], ends: Mapping[TopicPartition, int]
    ) -> frozenset[TopicPartition]:
        """The stalled ones. `positions` are those of the partitions that are wanted now; the others are forgotten."""
        before, self._places = self._places, {}
        stalled = set()
        for partition, position in positions.items():
            if position >= ends.get(partition, 0):
                continue
            place = before.get(partition)
            if place is None or place.position != position:
                place = Place(position, now)
            self._places[partition] = place
            if now - place.since >= self._patience:
                stalled.add(partition)
        return frozenset(stalled)

    def forget(self, partitions: Collection[TopicPartition] | None = None) -> None:
        """Begin anew with these, or with all."""
        if partitions is None:
            self._places.clear()
            return
        for partition in partitions:
            self._places.pop(partition, None)
