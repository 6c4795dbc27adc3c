"""Records: events as bytes in a log, and where they stand in it."""

from __future__ import annotations

from datetime import datetime
from typing import NamedTuple, TypeAlias


class TopicPartition(NamedTuple):
    """One partition of one topic: what is ordered, owned and fenced."""

    topic: str
    partition: int


Headers: TypeAlias = tuple[tuple[str, bytes], ...]

MAX_RECORD_BYTES = 1_047_564
"""The largest record (key + value + headers) that every log takes as it comes, for whoever cannot ask the log.

A topic of Kafka takes batches of 1,048,588 bytes (`max.message.bytes`: 1 MiB, and 12 for the log) until it is told
otherwise. A batch needs 61 of them for itself, and its record up to 21 and 10 for each header: 963 are room for 94. The
embedded log has the same limit, so that what runs on it runs on Kafka.
"""


class Record(NamedTuple):
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
