"""A context for a unit test that calls a handler as the function it is."""

from __future__ import annotations

from typing import Any

from microflow.context import Context
from microflow.ids import digest_of
from microflow.ports import Record
from microflow.virtual_time import START


def context(**overrides: Any) -> Context:
    """A `Context` for a unit test that calls a handler as the function it is: `take_payment(order, context())`.

    Any field can be overridden; what the handler wrote is in `context.writes.kept`.
    """
    record = Record(topic="test", partition=0, key=b"key", value=b"{}", timestamp=START, offset=0)
    event_id = overrides.get("event_id", "00000000-0000-7000-8000-000000000000")
    values = {
        "service": "test",
        "handler": "test",
        "event_id": event_id,
        "correlation_id": event_id,
        "causation_id": None,
        "key": "key",
        "attempt": 1,
        "occurred_at": START,
        "now": START,
        "record": record,
        "digest": digest_of("/test", event_id),
    }
    return Context(**{**values, **overrides})
