"""What is asked of a database by those who look at it and migrate it: `microflow db` and `doctor`, never a service."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from microflow.records import TopicPartition


@dataclass(frozen=True, slots=True, kw_only=True)
class DatabaseState:
    """What a database says of itself, and what it holds of one service; reading it changes nothing.

    `product` is its name with its version. `version` is that of our tables (0: there are none), `known` the one that
    this microflow makes, and `pending` names what leads there. `applied` are the migrations of the service's own tables
    that were run. `cluster_id` is the log it belongs to, `watermarks` are how far the service has handled it. `inbox`
    counts the claims of all services and may be an estimate; `inbox_bytes` is their size where that is known.
    """

    product: str
    version: int
    known: int
    pending: tuple[str, ...]
    applied: tuple[str, ...] = ()
    cluster_id: str | None = None
    watermarks: Mapping[TopicPartition, int] = field(default_factory=dict)
    outbox: int = 0
    outbox_oldest: datetime | None = None
    inbox: int = 0
    inbox_bytes: int | None = None
    parked: int = 0
    dead_letters: int = 0
    server: ServerState | None = None


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
