"""What the runtime tells those who look on: one report for each execution of a handler whose end is known."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Literal, TypeAlias

from microflow.records import Record

ReportedOutcome: TypeAlias = Literal["done", "retry", "dead", "duplicate", "waiting", "dropped"]
"""`done`: committed. `retry`: parked for another attempt. `dead`: a dead letter. `duplicate`: its claim was there
already. `waiting`: parked behind an event of its key. `dropped`: another process owns the partition now."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Emission:
    """An event that a committed execution emitted."""

    type: str
    id: str
    topic: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """The end of one execution. `took` is the handler's own time, `retry_in` the wait until the next attempt."""

    service: str
    handler: str
    where: str
    outcome: ReportedOutcome
    event_type: str
    event_id: str
    flow: str
    causation_id: str | None
    record: Record
    attempt: int
    attempts: int
    took: timedelta
    emitted: tuple[Emission, ...] = ()
    error: BaseException | None = None
    retry_in: timedelta | None = None
    diverged: bool = False


Observe: TypeAlias = Callable[[Report], None]
"""Given every report. Must return quickly and never raise."""


def look_away(report: Report) -> None:
    """Observe nothing."""
