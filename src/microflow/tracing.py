"""Tracing: one flow is one trace. The spans of a service, from what is read to what is sent.

- `process TYPE`, one for each attempt of a handler: child of the span that created the event, and linked to it. It is
  handed to the exporter when it is known what became of the attempt; one whose result was rolled back is marked.
- `create TYPE`, one for each emitted event, child of its attempt. Its context goes into the event's headers and is
  never rewritten, whoever publishes it and however often; it is handed over once the event is committed.
- `send TYPE`, one for each sampled record that is published, child of its `create`: what lies between them is the time
  in the outbox.

Where nobody samples, the context that came with an event goes on with what it causes, and nothing else is done.

Sources: OpenTelemetry semantic conventions 1.44 (messaging spans, "batch publishing with create spans"; CloudEvents);
W3C Trace Context and Baggage.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, NamedTuple

from opentelemetry import context as contexts
from opentelemetry import trace
from opentelemetry.baggage.propagation import W3CBaggagePropagator
from opentelemetry.context import Context as TraceContext
from opentelemetry.propagators.composite import CompositePropagator
from opentelemetry.propagators.textmap import Getter, Setter, TextMapPropagator
from opentelemetry.trace import Link, Span, SpanKind, Status, StatusCode, Tracer
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from microflow import semantic_conventions as names
from microflow.causes import said_by
from microflow.envelopes import Envelope, Sealed
from microflow.frames import user_frames
from microflow.handlers import Handler
from microflow.ports import Parked
from microflow.records import Headers, Record
from microflow.reports import ReportedOutcome

SOON = timedelta(minutes=5)
"""A retry that is due later than this after the first failure begins a trace of its own, linked to the first one."""

LONGEST_HEADER = 8192
"""Bytes of one header of a trace that is passed on: what W3C lets a baggage have."""


class Place(NamedTuple):
    """Where a service stands: what its log is called in `messaging.system`, its first broker, its own name there."""

    system: str
    server: str = ""
    port: int = 0
    client_id: str = ""


class Tracing:
    """The spans of one service in one process.

    Without a `tracer` the context that comes with an event is passed on and that is all. `now` says the time in
    nanoseconds since 1970, as spans want it. `heeds_parents` says that the sampler takes no span whose remote parent
    was not sampled, so it need not be asked.
    """

    def __init__(
        self,
        tracer: Tracer | None,
        propagator: TextMapPropagator,
        *,
        service: str,
        place: Place,
        now: Callable[[], int],
        heeds_parents: bool,
    ) -> None:
        self._tracer = tracer
        self._propagator = propagator
        self._fields = frozenset(propagator.fields)
        self.now = now
        self._heeds_parents = heeds_parents
        self._everywhere: dict[str, Any] = {names.MESSAGING_SYSTEM: place.system}
        if place.client_id:
            self._everywhere[names.MESSAGING_CLIENT_ID] = place.client_id
        if place.server:
            self._everywhere |= {names.SERVER_ADDRESS: place.server, names.SERVER_PORT: place.port}
        self._process = self._everywhere | {
            names.MESSAGING_OPERATION_NAME: "process",
            names.MESSAGING_OPERATION_TYPE: "process",
            names.MESSAGING_CONSUMER_GROUP_NAME: service,
        }

    # ── an attempt ────────────────────────────────────────────────────────────────────────────────────────────────

    def begin(
        self, record: Record, envelope: Envelope, handler: Handler, *, attempt: int, parked: Parked | None
    ) -> Attempt | None:
        """The span of an attempt that begins now; None if nobody wants to see it. `parked` is the row it resumes."""
        if self._tracer is None or (self._heeds_parents and _is_unsampled(record.headers)):
            return None
        came_from = self._extract(record.headers)
        origin = trace.get_current_span(came_from).get_span_context()
        links = [Link(origin)] if origin.is_valid else []
        begins_anew = parked is not None and _comes_late(parked)
        parent = trace.set_span_in_context(trace.INVALID_SPAN, came_from) if begins_anew else came_from
        span = self._tracer.start_span(
            f"process {envelope.type}",
            context=parent,
            kind=SpanKind.CONSUMER,
            attributes=self._of_attempt(record, envelope, handler, attempt),
            links=links,
            start_time=self.now(),
        )
        return Attempt(self, span, trace.set_span_in_context(span, parent))

    def carry(self, record: Record) -> Headers:
        """The context that came with a record, for the events that it causes."""
        return tuple(each for each in record.headers if each[0] in self._fields and len(each[1]) <= LONGEST_HEADER)

    def create(
        self, event_type: str, topic: str, key: bytes | None, headers: Headers, context: TraceContext | None = None
    ) -> tuple[Span | None, Headers]:
        """The span that creates an event, in a context or in the current one, and the headers that carry it."""
        if self._tracer is None:
            return None, self.carried_in(context)
        span = self._tracer.start_span(
            f"create {event_type}",
            context=context,
            kind=SpanKind.PRODUCER,
            attributes=self._everywhere
            | {names.MESSAGING_OPERATION_NAME: "create", names.MESSAGING_OPERATION_TYPE: "create"}
            | _of_record(topic, key, headers),
            start_time=self.now(),
        )
        if not span.get_span_context().is_valid:  # nobody has set up anything
            return None, self.carried_in(context)
        return span, self.carried_in(trace.set_span_in_context(span, context))

    def create_root(self, event_type: str, topic: str, key: bytes | None, headers: Headers) -> Headers:
        """The headers of an event that no handler emits, with the context of the span that creates it: a child of
        whatever is current here."""
        span, carried = self.create(event_type, topic, key, headers)
        if span is not None:
            span.end(self.now())
        return headers + carried

    # ── publishing ────────────────────────────────────────────────────────────────────────────────────────────────

    def sent(self, records: Sequence[Record], errors: Sequence[BaseException | None], *, began: int) -> None:
        """Records were handed to the log at an instant, and it has acknowledged them now, or refused."""
        if self._tracer is None:
            return
        ended = self.now()
        for record, error in zip(records, errors, strict=True):
            context = self._sampled(record.headers)
            if context is None:
                continue
            attributes = _of_record(record.topic, record.key, record.headers)
            event_type = attributes.get(names.CLOUDEVENTS_EVENT_TYPE, record.topic)
            span = self._tracer.start_span(
                f"send {event_type}",
                context=context,
                kind=SpanKind.CLIENT,
                attributes=self._everywhere
                | {
                    names.MESSAGING_OPERATION_NAME: "send",
                    names.MESSAGING_OPERATION_TYPE: "send",
                    names.MESSAGING_DESTINATION_PARTITION_ID: str(record.partition),
                }
                | attributes,
                start_time=began,
            )
            if error is not None:
                span.set_attribute(names.ERROR_TYPE, type(error).__qualname__)
                span.set_status(Status(StatusCode.ERROR, said_by(error)))
            span.end(ended)

    # ── contexts and headers ──────────────────────────────────────────────────────────────────────────────────────

    def _extract(self, headers: Headers) -> TraceContext:
        found = {name: value for name, value in headers if name in self._fields and len(value) <= LONGEST_HEADER}
        return self._propagator.extract(found, context=TraceContext(), getter=FROM_HEADERS)

    def _sampled(self, headers: Headers) -> TraceContext | None:
        """The context in headers, if whoever created it wants to see more of it."""
        if _is_unsampled(headers) or not any(name in self._fields for name, _ in headers):
            return None
        context = self._extract(headers)
        return context if trace.get_current_span(context).get_span_context().trace_flags.sampled else None

    def carried_in(self, context: TraceContext | None) -> Headers:
        """The headers that carry a context, or the current one."""
        carried: list[tuple[str, bytes]] = []
        self._propagator.inject(carried, context=context, setter=INTO_HEADERS)
        return tuple(carried)

    def _of_attempt(self, record: Record, envelope: Envelope, handler: Handler, attempt: int) -> dict[str, Any]:
        attributes = self._process | {
            names.MESSAGING_DESTINATION_NAME: record.topic,
            names.MESSAGING_DESTINATION_PARTITION_ID: str(record.partition),
            names.MESSAGING_KAFKA_OFFSET: record.offset,
            names.MESSAGING_MESSAGE_ID: envelope.id,
            names.MESSAGING_MESSAGE_CONVERSATION_ID: envelope.correlation_id,
            names.CLOUDEVENTS_EVENT_ID: envelope.id,
            names.CLOUDEVENTS_EVENT_SOURCE: envelope.source,
            names.CLOUDEVENTS_EVENT_TYPE: envelope.type,
            names.CODE_FUNCTION_NAME: f"{handler.function.__module__}.{handler.function.__qualname__}",
            names.MICROFLOW_HANDLER: handler.name,
            names.MICROFLOW_ATTEMPT: attempt,
        }
        if record.key is not None:
            attributes[names.MESSAGING_KAFKA_MESSAGE_KEY] = record.key.decode(errors="replace")
        return attributes


class Attempt:
    """An attempt of a handler: its span, and those of the events that it emits, until it is known what became of it."""

    __slots__ = ("_context", "_creates", "_returned", "_span", "_tracing")

    def __init__(self, tracing: Tracing, span: Span, context: TraceContext) -> None:
        self._tracing = tracing
        self._span = span
        self._context = context
        self._creates: list[Span] = []
        self._returned: int | None = None

    def enter(self) -> None:
        """Whatever happens in this task from now on happens within the attempt."""
        contexts.attach(self._context)

    def create(self, sealed: Sealed) -> Sealed:
        """An event that the handler emits, with the context of the span that created it."""
        if self._span.is_recording():
            span, carried = self._tracing.create(sealed.type, sealed.topic, sealed.key, sealed.headers, self._context)
            if span is not None:
                self._creates.append(span)
        else:
            carried = self._tracing.carried_in(self._context)
        return sealed._replace(headers=sealed.headers + carried)

    def returned(self) -> None:
        """The handler has returned, or raised."""
        self._returned = self._tracing.now()

    def end(self, outcome: ReportedOutcome, error: BaseException | None) -> None:
        """It is known what became of it. What it created is told if it is committed, and was never there if not."""
        span = self._span
        if not span.is_recording():
            return
        now = self._tracing.now()
        span.set_attribute(names.MICROFLOW_OUTCOME, outcome)
        if error is not None:
            self._record(error)
        span.end(self._returned or now)
        if outcome == "done":
            for each in self._creates:
                each.end(now)

    def roll_back(self) -> None:
        """What it did is undone, for no fault of its own: it will be done again."""
        self._span.set_attribute(names.MICROFLOW_ROLLED_BACK, True)
        self._span.end(self._returned or self._tracing.now())

    def _record(self, error: BaseException) -> None:
        said, kind = said_by(error), f"{type(error).__module__}.{type(error).__qualname__}"
        self._span.set_attribute(names.ERROR_TYPE, kind)
        self._span.set_status(Status(StatusCode.ERROR, said))
        exception = {
            names.EXCEPTION_TYPE: kind,
            names.EXCEPTION_MESSAGE: str(error) or said,
            names.EXCEPTION_STACKTRACE: "".join(traceback.format_list(user_frames(error))),
        }
        self._span.add_event("exception", exception, timestamp=self._returned)


def _comes_late(row: Parked) -> bool:
    """Whether a parked event comes back so late that it begins a trace of its own: it was a dead letter and is
    redriven, or its retry is due long after its first failure."""
    if row.first_failed_at is None:
        return False  # it has waited behind another one
    return row.attempt == 0 or (row.due is not None and row.due - row.first_failed_at > SOON)


def _of_record(topic: str, key: bytes | None, headers: Headers) -> dict[str, Any]:
    attributes: dict[str, Any] = {names.MESSAGING_DESTINATION_NAME: topic}
    if key is not None:
        attributes[names.MESSAGING_KAFKA_MESSAGE_KEY] = key.decode(errors="replace")
    for header, value in headers:
        for name in _ATTRIBUTES_OF.get(header, ()):
            attributes[name] = value.decode(errors="replace")
    return attributes


_ATTRIBUTES_OF = {
    "ce_id": (names.MESSAGING_MESSAGE_ID, names.CLOUDEVENTS_EVENT_ID),
    "ce_source": (names.CLOUDEVENTS_EVENT_SOURCE,),
    "ce_type": (names.CLOUDEVENTS_EVENT_TYPE,),
    "ce_correlationid": (names.MESSAGING_MESSAGE_CONVERSATION_ID,),
}


# ── what a traceparent says at a glance ───────────────────────────────────────────────────────────────────────────

_FLAGS = slice(53, 55)
_LENGTH = 55


def _is_unsampled(headers: Headers) -> bool:
    """Whether whoever came before did not want to see the flow. What cannot be read says nothing."""
    for name, value in headers:
        if name == "traceparent":
            try:
                return len(value) >= _LENGTH and not int(value[_FLAGS], 16) & 1
            except ValueError:
                return False
    return False


# ── a record's headers as a carrier ───────────────────────────────────────────────────────────────────────────────


class _FromHeaders(Getter[dict[str, bytes]]):
    def get(self, carrier: dict[str, bytes], key: str) -> list[str] | None:
        value = carrier.get(key)
        return None if value is None else [value.decode(errors="replace")]

    def keys(self, carrier: dict[str, bytes]) -> list[str]:
        return list(carrier)


class _IntoHeaders(Setter[list[tuple[str, bytes]]]):
    def set(self, carrier: list[tuple[str, bytes]], key: str, value: str) -> None:
        carrier.append((key, value.encode()))


FROM_HEADERS = _FromHeaders()
INTO_HEADERS = _IntoHeaders()

W3C = CompositePropagator([TraceContextTextMapPropagator(), W3CBaggagePropagator()])
UNTRACED = Tracing(None, W3C, service="", place=Place(""), now=lambda: 0, heeds_parents=True)
"""Who makes no spans; the context of others goes on with what their events cause."""
