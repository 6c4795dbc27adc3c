"""Records: events as bytes in a log, and where they stand in it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple, TypeAlias


class TopicPartition(NamedTuple):
    """One partition of one topic: what is ordered, owned and fenced."""

    topic: str
    partition: int


Headers: TypeAlias = tuple[tuple[str, bytes], ...]


@dataclass(frozen=True, slots=True)
class Record:
    """An event's bytes in a log. `offset` and `timestamp` are the log's; -1 and None on a record to be published."""

    topic: str
    partition: int
    key: bytes | None
    value: bytes | None
    headers: Headers = ()
    timestamp: datetime | None = None
    offset: int = -1

    @property
    def source(self) -> TopicPartition:
        return TopicPartition(self.topic, self.partition)
