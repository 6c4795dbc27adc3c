"""What is asked of a log by those who lay out its topics: `microflow topics`, never a running service."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Protocol

FOREVER = timedelta.max
"""A retention without an end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TopicLayout:
    """How a topic is laid out, or is to be: None is what the log decides, or what it does not have.

    `replication` is the number of copies of each partition, `min_in_sync` how many of them have a record before it
    counts as written, `retention` how long a record is kept (or `FOREVER`).
    """

    partitions: int
    replication: int | None = None
    min_in_sync: int | None = None
    retention: timedelta | None = None


class Administration(Protocol):
    """Looks at topics and changes them. It never deletes one, and never takes a partition away.

    Every method raises TransportError; what was done before it stays done.
    """

    async def layouts(self, names: Collection[str]) -> Mapping[str, TopicLayout]:
        """How the named topics that exist are laid out."""
        ...

    async def create(self, layouts: Mapping[str, TopicLayout]) -> None:
        """Create topics, and return once they can be written. One that is there by now stays as it is."""
        ...

    async def grow(self, partitions: Mapping[str, int]) -> None:
        """Give topics so many partitions. One that has as many or more stays as it is."""
        ...

    async def lags(self, topic: str) -> Mapping[str, int]:
        """How many records of a topic each group has before it that reads the topic, or once did."""
        ...

    async def alter(self, layouts: Mapping[str, TopicLayout]) -> None:
        """Set `min_in_sync` and `retention` of topics where they are given."""
        ...
