"""A program that traces its requests with a provider of its own: it appends an event, and runs the service that handles
it. Prints a line for every span: its name and its parents' names."""

from __future__ import annotations

import asyncio
import sqlite3
import sys
from pathlib import Path

from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from microflow import Event, Outbox, Service, on, running
from microflow.reports import Report
from microflow.settings import Settings

tracer = trace.get_tracer("program")
handled = asyncio.Event()


class Placed(Event, key="order"):
    order: str


@on("Placed")
async def accept(order: Placed) -> None:
    with tracer.start_as_current_span("charge"):
        pass


def observe(report: Report) -> None:
    handled.set()


async def main() -> None:
    outbox = Outbox("web")
    settings = Settings(home=Path.cwd(), kafka=f"local:{Path.cwd() / 'log.db'}")
    async with running(Service("shop"), settings=settings, observe=observe):
        with tracer.start_as_current_span("POST /orders"), sqlite3.connect(settings.folder / "shop.db") as connection:
            outbox.append_sync(connection, Placed(order="o-1"))
        connection.close()
        await handled.wait()


exporter = InMemorySpanExporter()
provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(exporter))
trace.set_tracer_provider(provider)
asyncio.run(main())
spans = {span.get_span_context().span_id: span for span in exporter.get_finished_spans()}  # type: ignore[union-attr]
for span in spans.values():
    path = [span.name]
    while span.parent is not None:
        span = spans[span.parent.span_id]
        path.insert(0, span.name)
    sys.stdout.write(f"{' > '.join(path)}\n")
