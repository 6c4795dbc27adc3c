"""What is there, read from outside: the records of the log and the rows of the services' databases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

PARTITIONS = 3
"""Of each topic."""


@dataclass(frozen=True, slots=True)
class Logged:
    """A record of the log. `at` is when it was written, in milliseconds, where the log says it."""

    topic: str
    partition: int
    offset: int
    key: str
    id: str
    type: str
    source: str
    cause: str | None
    at: int = 0


@dataclass(frozen=True, slots=True)
class Effect:
    """A row that a handler wrote in its transaction."""

    handler: str
    event_id: str
    topic: str
    key: str
    process: str
    owner: str


@dataclass(frozen=True, slots=True)
class Tables:
    """What one service's database holds. `dead` are (handler, event id), `crashed` those of them that are said to have
    ended processes; `most_crashes` is the largest number that is counted for an event."""

    effects: Sequence[Effect]
    dead: Sequence[tuple[str, str]]
    parked: int
    outbox: int
    watermarks: Mapping[tuple[str, int], int]
    owners: Mapping[tuple[str, int], str]
    crashed: Sequence[tuple[str, str]] = ()
    most_crashes: int = 0


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything that is there. The log is in order of topics, partitions and offsets."""

    log: Sequence[Logged]
    tables: Mapping[str, Tables]


def logged(
    topic: str, partition: int, offset: int, key: bytes | None, headers: Mapping[str, str], *, at: int = 0
) -> Logged:
    """A record by its headers."""
    return Logged(
        topic=topic,
        partition=partition,
        offset=offset,
        key=(key or b"").decode(),
        id=headers["ce_id"],
        type=headers["ce_type"],
        source=headers["ce_source"],
        cause=headers.get("ce_causationid"),
        at=at,
    )
