"""What a database and a log are asked by those who look at them: `microflow db` and `doctor`. A service asks only what
it may do, when it starts."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import NamedTuple, Protocol

from microflow.ports.administration import TopicLayout
from microflow.records import TopicPartition


@dataclass(frozen=True, slots=True, kw_only=True)
class DatabaseState:
    """What a database says of itself, and what it holds of one service; reading it changes nothing.

    `product` is its name with its version. `version` is that of our tables (0: there are none), `known` the one that
    this microflow makes, and `pending` names what leads there; `needs` is the least version that one who uses the
    tables must know. `applied` are the migrations of the service's own tables that were run, each with its checksum;
    this, and what follows, is not read where we do not know the tables (`is_newer`). `cluster_id` is the log it
    belongs to, `services` are those that have handlers in it, `watermarks` how far this one has handled the log.
    `inbox` counts the claims of all services and may be an estimate; `inbox_bytes` is their size where that is known.
    """

    product: str
    version: int
    known: int
    pending: tuple[str, ...]
    needs: int = 0
    applied: Mapping[str, str] = field(default_factory=dict)
    cluster_id: str | None = None
    services: tuple[str, ...] = ()
    watermarks: Mapping[TopicPartition, int] = field(default_factory=dict)
    outbox: int = 0
    outbox_oldest: datetime | None = None
    inbox: int = 0
    inbox_bytes: int | None = None
    parked: int = 0
    dead_letters: int = 0
    server: ServerState | None = None

    @property
    def is_newer(self) -> bool:
        """Whether the tables are of a newer microflow, which this one cannot use."""
        return self.needs > self.known


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerState:
    """What a database server says of itself. Settings are as it writes them.

    `connections` are in use of `most_connections`. `oldest_transaction` is when the oldest one that is still open
    began, and `oldest_owner` whose it is. `read_only` is a standby, or a primary that was told to be.
    """

    read_only: bool
    connections: int
    most_connections: int
    oldest_transaction: datetime | None = None
    oldest_owner: str = ""
    settings: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class TopicState:
    """How a topic is laid out, and what this user may do with it: None where the log does not say.

    `unclean` is whether a copy that has not all records may become the one that is read.
    """

    layout: TopicLayout | None
    unclean: bool | None = None
    may_read: bool | None = None
    may_write: bool | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LogState:
    """What a log says of itself, and of topics that it was asked for; those that do not exist are left out."""

    brokers: int
    topics: Mapping[str, TopicState]


class GroupMember(NamedTuple):
    """Who is in a group: what it calls itself, and from where it speaks."""

    client_id: str
    host: str


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupState:
    """Who is in a group, and whether this user may be."""

    members: tuple[GroupMember, ...]
    may_join: bool | None = None


class Inspection(Protocol):
    """Looks at a log as those need who run it; reading changes nothing. Every method raises TransportError."""

    @property
    def client_id(self) -> str:
        """What members of this service call themselves in a group."""
        ...

    async def log(self, topics: Collection[str]) -> LogState: ...

    async def group(self, name: str) -> GroupState: ...
