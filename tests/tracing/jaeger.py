"""The traces that a Jaeger has, as its API gives them."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

CONVERSATION = "messaging.message.conversation_id"
KINDS = {1: "internal", 2: "server", 3: "client", 4: "producer", 5: "consumer"}
SOON = 60.0
"""Seconds within which what was exported is found, on a machine that is busy with other things."""


@dataclass(frozen=True, slots=True)
class Span:
    """One span. Ids are hexadecimal, times nanoseconds; `links` are (trace id, span id)."""

    trace: str
    id: str
    parent: str
    name: str
    kind: str
    service: str
    began: int
    ended: int
    attributes: Mapping[str, Any]
    links: Sequence[tuple[str, str]]
    error: str
    events: Sequence[str]


class Traces:
    """Spans of some traces."""

    def __init__(self, spans: Sequence[Span]) -> None:
        self.spans = spans

    def named(self, name: str, service: str | None = None) -> list[Span]:
        return sorted(
            (span for span in self.spans if span.name == name and service in (None, span.service)),
            key=lambda span: span.began,
        )

    def only(self, name: str, service: str | None = None) -> Span:
        [span] = self.named(name, service)
        return span

    def ids(self) -> set[str]:
        return {span.trace for span in self.spans}

    def tree(self) -> list[str]:
        """Every span under its parent: `microflow emit: create Placed > shop: process Placed`."""
        found = {span.id: span for span in self.spans}

        def path(span: Span) -> str:
            here = f"{span.service}: {span.name}"
            return f"{path(found[span.parent])} > {here}" if span.parent in found else here

        return sorted(path(span) for span in self.spans)


def traces_of(query: str, flow: str, *, services: Sequence[str], until: Callable[[Traces], bool]) -> Traces:
    """All traces of a flow, found by its conversation id, once they are what is waited for."""
    ends = time.monotonic() + SOON
    while True:
        ids = {identifier for service in services for identifier in _found(query, flow, service)}
        traces = Traces([span for identifier in sorted(ids) for span in _spans(query, identifier)])
        if until(traces):
            return traces
        assert time.monotonic() < ends, "\n".join(traces.tree()) or "Jaeger has no such flow"
        time.sleep(0.2)


def _found(query: str, flow: str, service: str) -> set[str]:
    now = datetime.now(UTC)
    parameters = {
        "query.service_name": service,
        "query.start_time_min": _instant(now - timedelta(hours=1)),
        "query.start_time_max": _instant(now + timedelta(hours=1)),
        "query.num_traces": "100",
        "query.attributes": json.dumps({CONVERSATION: flow}),
    }
    answer = _get(f"{query}/api/v3/traces?{urllib.parse.urlencode(parameters)}")
    return {span.trace for span in _read(answer)}


def _spans(query: str, identifier: str) -> list[Span]:
    return _read(_get(f"{query}/api/v3/traces/{identifier}"))


def _get(url: str) -> Any:
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as error:
        if error.code == 404:
            return {"result": {"resourceSpans": []}}
        raise


def _read(answer: Any) -> list[Span]:
    return [
        _span(span, _attributes(resource["resource"])["service.name"])
        for resource in answer["result"].get("resourceSpans", ())
        for scope in resource["scopeSpans"]
        for span in scope["spans"]
    ]


def _span(span: Mapping[str, Any], service: str) -> Span:
    return Span(
        trace=span["traceId"],
        id=span["spanId"],
        parent=span.get("parentSpanId", ""),
        name=span["name"],
        kind=KINDS[span["kind"]],
        service=service,
        began=int(span["startTimeUnixNano"]),
        ended=int(span["endTimeUnixNano"]),
        attributes=_attributes(span),
        links=[(link["traceId"], link["spanId"]) for link in span.get("links", ())],
        error=span.get("status", {}).get("message", ""),
        events=[event["name"] for event in span.get("events", ())],
    )


def _attributes(owner: Mapping[str, Any]) -> dict[str, Any]:
    return {each["key"]: _value(each["value"]) for each in owner.get("attributes", ())}


def _value(value: Mapping[str, Any]) -> Any:
    [(kind, content)] = value.items()
    return int(content) if kind == "intValue" else content


def _instant(at: datetime) -> str:
    return at.isoformat().replace("+00:00", "Z")
