"""Every line that is logged inside a handler says which flow it belongs to, whoever logs it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from typing import Any

import pytest

from microflow.handlers import on
from microflow.log_context import FlowFilter
from tests.runtime.bench import bench
from tests.runtime.events import Cancelled, Placed
from tests.runtime.spans import Spans, of
from tests.runtime.virtual_loop import virtual

library = logging.getLogger("some.library")


class Kept(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.addFilter(FlowFilter())
        self.records: list[dict[str, Any]] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(dict(vars(record)))


@pytest.fixture
def kept() -> Iterator[Kept]:
    handler = Kept()
    library.addHandler(handler)
    library.setLevel(logging.INFO)
    yield handler
    library.removeHandler(handler)


def said(kept: Kept, message: str) -> dict[str, Any]:
    [record] = [each for each in kept.records if each["msg"] == message]
    return record


def test_whoever_logs_inside_a_handler_says_its_flow_and_its_span(kept: Kept) -> None:
    @virtual
    async def scenario() -> None:
        @on("Placed")
        async def accept(order: Placed) -> None:
            library.info("here")
            await asyncio.create_task(elsewhere())

        @on("Cancelled")
        def refund(order: Cancelled) -> None:
            library.info("in a thread")

        async def elsewhere() -> None:
            library.info("in a task")

        spans = Spans()
        async with bench() as it:
            await it.start(accept, refund, tracing=spans.of("shop", it.clock))
            placed, cancelled = await it.emit(Placed(order="a"), Cancelled(order="a"))
            await it.settle()

        for message, record, name in (
            ("here", placed, "Placed"),
            ("in a task", placed, "Placed"),
            ("in a thread", cancelled, "Cancelled"),
        ):
            fields = said(kept, message)
            identifier = dict(record.headers)["ce_id"].decode()
            span = of(spans.only(f"process {name}"))
            assert (fields["flow"], fields["event"], fields["attempt"]) == (identifier, identifier, 1)
            assert fields["handler"] == {"Placed": "accept", "Cancelled": "refund"}[name]
            assert fields["trace_id"] == f"{span.trace_id:032x}"
            assert fields["span_id"] == f"{span.span_id:016x}"

    scenario()


def test_outside_of_a_handler_nothing_is_added_and_what_is_said_stays(kept: Kept) -> None:
    library.info("outside", extra={"flow": "mine"})

    fields = said(kept, "outside")
    assert fields["flow"] == "mine"
    assert not {"event", "handler", "attempt", "trace_id", "span_id"} & fields.keys()
