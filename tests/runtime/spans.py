"""What a service's spans are, read from an exporter in memory."""

from __future__ import annotations

from collections.abc import Sequence

from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import Sampler
from opentelemetry.trace import SpanContext

from microflow.ports import Clock
from microflow.telemetry import tracing_by
from microflow.tracing import Place, Tracing


class Spans:
    """The spans of some services, which share a provider."""

    def __init__(self, sampler: Sampler | None = None) -> None:
        self.exporter = InMemorySpanExporter()
        self.provider = TracerProvider(sampler=sampler, shutdown_on_exit=False)
        self.provider.add_span_processor(SimpleSpanProcessor(self.exporter))

    def of(self, service: str, clock: Clock) -> Tracing:
        return tracing_by(self.provider, service, Place("kafka", "broker", 9092, f"{service}-0"), clock)

    def all(self) -> Sequence[ReadableSpan]:
        """Those that were handed over, in the order in which they began."""
        return sorted(self.exporter.get_finished_spans(), key=lambda span: span.start_time or 0)

    def named(self, name: str) -> list[ReadableSpan]:
        return [span for span in self.all() if span.name == name]

    def only(self, name: str) -> ReadableSpan:
        [span] = self.named(name)
        return span

    def traces(self) -> int:
        return len({of(span).trace_id for span in self.all()})

    def tree(self) -> list[str]:
        """Every span under its parent, those of a parent by name: `process Placed > create Accepted`."""
        found = {of(span).span_id: span for span in self.all()}

        def path(span: ReadableSpan) -> str:
            above = found.get(span.parent.span_id) if span.parent else None
            return f"{path(above)} > {span.name}" if above else span.name

        return sorted(path(span) for span in found.values())


def of(span: ReadableSpan) -> SpanContext:
    context = span.get_span_context()
    assert context is not None
    return context


def traceparent_of(headers: Sequence[tuple[str, bytes]]) -> str:
    return dict(headers)["traceparent"].decode()


def written(context: SpanContext) -> bytes:
    """A context as it stands in a header."""
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}".encode()
