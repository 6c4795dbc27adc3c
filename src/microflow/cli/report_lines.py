"""A report as the fields of a JSON line: what `run` prints for each execution when nobody reads along."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from microflow.dead_letters import describe
from microflow.frames import place_raised
from microflow.reports import Report


def report_fields(report: Report, *, at: datetime) -> dict[str, Any]:
    """What a report says, as values that JSON has; `at` is the instant at which it was observed.

    `where` is the user's line that raised `error`, or without one the handler's. Ids and keys are text, spans of
    time are milliseconds, what is not known is None.
    """
    record = report.record
    return {
        "at": instant_text(at),
        "service": report.service,
        "handler": report.handler,
        "outcome": report.outcome,
        "type": report.event_type,
        "event": report.event_id,
        "flow": report.flow,
        "cause": report.causation_id,
        "key": None if record.key is None else record.key.decode(errors="replace"),
        "topic": record.topic,
        "partition": record.partition,
        "offset": record.offset,
        "attempt": report.attempt,
        "attempts": report.attempts,
        "took_ms": milliseconds(report.took),
        "emitted": [{"type": each.type, "id": each.id, "topic": each.topic} for each in report.emitted],
        "error": None if report.error is None else describe(report.error),
        "where": (place_raised(report.error) if report.error is not None else None) or report.where,
        "retry_in_ms": None if report.retry_in is None else milliseconds(report.retry_in),
        "diverged": report.diverged,
    }


def json_line(fields: Mapping[str, Any]) -> str:
    """Fields as one line of JSON, without its end."""
    return json.dumps(fields, ensure_ascii=False, separators=(",", ":"), default=str)


def instant_text(instant: datetime) -> str:
    """An instant as RFC 3339 in UTC, to the millisecond."""
    return instant.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def milliseconds(span: timedelta) -> float:
    return round(span / timedelta(milliseconds=1), 3)
