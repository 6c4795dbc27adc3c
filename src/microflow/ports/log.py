"""What the runtime asks of a log."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import NamedTuple, Protocol

from microflow.errors import TransportError
from microflow.ports.administration import Administration
from microflow.ports.inspection import Inspection
from microflow.records import Record, TopicPartition


@dataclass(frozen=True, slots=True)
class Topic:
    """A topic as the log knows it. `incarnation` differs after the topic was deleted and created again."""

    name: str
    partitions: int
    incarnation: str


class Bounds(NamedTuple):
    """A partition's first offset that is still there, and the offset its next record will get."""

    beginning: int
    end: int


class Committed(NamedTuple):
    """What a group last committed for a partition: an offset for lag displays, and a note."""

    offset: int
    metadata: str


class RebalanceListener(Protocol):
    """Told by a subscription which partitions its member has. Both methods are awaited one after another."""

    async def revoked(self, partitions: frozenset[TopicPartition]) -> None:
        """These are taken away (always all that the member has). While it runs nobody else has got them yet,
        unless this member has been silent for longer than the session timeout."""
        ...

    async def assigned(self, partitions: frozenset[TopicPartition]) -> None:
        """These are the member's now, all of them, perhaps none. It must `seek` every one of them: no record of a
        partition is fetched before that."""
        ...


class Subscription(Protocol):
    """One member of a consumer group, or with `group=None` a reader of every partition, outside all groups."""

    async def fetch(self, *, max_records: int, wait: timedelta) -> Sequence[Record]:
        """Records of the assigned partitions, in offset order within each; empty after `wait` without any.

        Every record of a partition from the offset last sought is returned once and in order (offsets may have
        gaps). Records already read when a partition is revoked, or after a rebalance gives it back, may be returned
        again: reading starts where the listener seeks. One caller at a time; it keeps calling even when everything
        is paused, because that is what keeps the member alive. Raises TransportError; the next call goes on where
        this one did not.
        """
        ...

    def seek(self, partition: TopicPartition, offset: int) -> None:
        """The next record fetched from the partition is the first one at or after `offset`."""
        ...

    def pause(self, partitions: Collection[TopicPartition]) -> None:
        """Fetch nothing from these until `resume`. A rebalance forgets it."""
        ...

    def resume(self, partitions: Collection[TopicPartition]) -> None: ...

    async def commit(self, offsets: Mapping[TopicPartition, int], *, metadata: str) -> None:
        """Tell the group's offsets to those who display lag. Raises TransportError if this member's generation is
        over: an offset of an old assignment never replaces one of a newer one."""
        ...

    async def committed(self, partitions: Collection[TopicPartition]) -> Mapping[TopicPartition, Committed]:
        """What the group committed last; partitions it never committed are left out."""
        ...

    async def close(self) -> None:
        """Leave the group at once, so that the others need not wait for the session timeout. The listener is not
        called; a `fetch` under way returns what it has. Closing twice is harmless."""
        ...


class Topics(Protocol):
    """What a log knows about its topics."""

    async def cluster_id(self) -> str:
        """The log's identity; it changes only when the log is another one."""
        ...

    async def describe(self, names: Collection[str] | None = None) -> Mapping[str, Topic]:
        """The topics that exist, of those named, or all."""
        ...

    async def ensure(self, names: Collection[str]) -> frozenset[str]:
        """Create the named topics that do not exist, where the log does that by itself; return those still missing."""
        ...

    async def bounds(self, partitions: Collection[TopicPartition]) -> Mapping[TopicPartition, Bounds]:
        """Where each partition begins and ends now; partitions that do not exist are left out."""
        ...

    async def offsets_at(
        self, partitions: Collection[TopicPartition], instant: datetime
    ) -> Mapping[TopicPartition, int]:
        """The first offset whose record is not older than the instant; the end where there is none."""
        ...


class Transport(Protocol):
    """A partitioned, replayable log: Kafka, or its local stand-in."""

    @property
    def topics(self) -> Topics: ...

    @property
    def administration(self) -> Administration: ...

    @property
    def inspection(self) -> Inspection: ...

    def max_record_bytes(self, topic: str) -> int:
        """The size (key + value + headers) above which a topic never takes a record, as far as it is known: a topic
        that `Topics.ensure` has not asked for is as the log's others."""
        ...

    @property
    def publishing_at_once(self) -> int:
        """How many calls of `publish` at once, each for other partitions, are worth having."""
        ...

    async def publish(self, records: Sequence[Record]) -> Sequence[TransportError | None]:
        """Append records to their partitions, in order; return for each None once it is stored durably, or why not.

        After the first failure of a partition every later record of the call for that partition has failed too, so
        what was stored of a partition is a prefix of what was given. A record that failed may still be stored.
        """
        ...

    def subscribe(
        self, topics: Collection[str], *, group: str | None, listener: RebalanceListener
    ) -> AbstractAsyncContextManager[Subscription]:
        """Join a consumer group, or read everything with `group=None`. Entering joins; leaving closes.

        Partitions are assigned while `fetch` is called. A partition has one owner in a group; a member that dies
        loses its partitions after the session timeout; topics that appear later are picked up.
        """
        ...

    async def close(self) -> None: ...
