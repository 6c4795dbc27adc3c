"""One flow, one trace: which spans there are, where they hang, and when they are handed over."""

from __future__ import annotations

from datetime import timedelta

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ParentBased, TraceIdRatioBased
from opentelemetry.trace import SpanKind, StatusCode

from microflow import semantic_conventions as names
from microflow.connection import Connection
from microflow.context import Context
from microflow.errors import Reject
from microflow.faults import FaultPoint
from microflow.handlers import on
from microflow.ports import Record
from microflow.retries import Retry
from tests.runtime.bench import WRITE, Bench, bench
from tests.runtime.events import Accepted, Cancelled, Placed, Rejected
from tests.runtime.spans import Spans, of, traceparent_of, written
from tests.runtime.virtual_loop import virtual

SAMPLED = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
UNSAMPLED = SAMPLED[:-1] + b"0"


def carrying(it: Bench, event: Placed, *headers: tuple[str, bytes]) -> Record:
    record = it.record(event)
    return record._replace(headers=record.headers + headers)


@virtual
async def test_a_flow_through_two_services_is_one_tree() -> None:
    @on("Placed")
    async def accept(order: Placed) -> Accepted:
        return Accepted(order=order.order)

    @on("Accepted")
    async def ship(order: Accepted, connection: Connection) -> None:
        await connection.execute(WRITE, "ship", order.order)

    spans = Spans()
    async with bench() as it:
        await it.start(accept, tracing=spans.of("shop", it.clock))
        await it.start(ship, name="shipping", tracing=spans.of("shipping", it.clock))
        [placed] = await it.emit(Placed(order="a"))
        await it.settle()
        [accepted] = await it.published("Accepted")

    assert spans.tree() == [
        "process Placed",
        "process Placed > create Accepted",
        "process Placed > create Accepted > process Accepted",
        "process Placed > create Accepted > send Accepted",
    ]
    create, process, send = (spans.only(f"{each} Accepted") for each in ("create", "process", "send"))
    assert traceparent_of(accepted.headers).encode() == written(of(create))
    assert [written(link.context) for link in process.links] == [written(of(create))], "parent and link"
    assert (create.kind, process.kind, send.kind) == (SpanKind.PRODUCER, SpanKind.CONSUMER, SpanKind.CLIENT)
    scope = process.instrumentation_scope
    assert scope is not None
    assert (scope.name, scope.schema_url) == ("microflow", names.SCHEMA_URL)

    identifier, flow = dict(accepted.headers)["ce_id"].decode(), dict(placed.headers)["ce_id"].decode()
    everywhere = {
        "messaging.system": "kafka",
        "messaging.destination.name": "Accepted",
        "messaging.kafka.message.key": "a",
        "messaging.message.id": identifier,
        "messaging.message.conversation_id": flow,
        "cloudevents.event_id": identifier,
        "cloudevents.event_source": "/services/shop",
        "cloudevents.event_type": "Accepted",
        "server.address": "broker",
        "server.port": 9092,
    }
    of_shop = everywhere | {"messaging.client.id": "shop-0"}
    assert create.attributes == of_shop | {
        "messaging.operation.name": "create",
        "messaging.operation.type": "create",
    }
    assert send.attributes == of_shop | {
        "messaging.operation.name": "send",
        "messaging.operation.type": "send",
        "messaging.destination.partition.id": str(accepted.partition),
    }
    assert process.attributes == everywhere | {
        "messaging.operation.name": "process",
        "messaging.operation.type": "process",
        "messaging.client.id": "shipping-0",
        "messaging.consumer.group.name": "shipping",
        "messaging.destination.partition.id": str(accepted.partition),
        "messaging.kafka.offset": accepted.offset,
        "code.function.name": f"{ship.__module__}.{ship.__qualname__}",
        "microflow.handler": "ship",
        "microflow.attempt": 1,
        "microflow.outcome": "done",
    }


@virtual
async def test_nothing_is_told_before_it_is_committed() -> None:
    told: list[str] = []
    spans = Spans()

    def look(point: FaultPoint) -> None:
        if point in ("before commit", "after commit"):
            told.append(f"{point}: {', '.join(span.name for span in spans.all())}")

    @on("Placed")
    async def accept(order: Placed) -> Accepted:
        return Accepted(order=order.order)

    async with bench() as it:
        await it.start(accept, reach=look, tracing=spans.of("shop", it.clock))
        await it.emit(Placed(order="a"))
        await it.settle()

    assert told == ["before commit: ", "after commit: "]
    assert spans.tree()[:2] == ["process Placed", "process Placed > create Accepted"]


@virtual
async def test_an_attempt_that_fails_is_a_span_with_its_error_and_a_retry_soon_is_beside_it() -> None:
    @on("Placed", retry=Retry(attempts=2, first_delay=timedelta(minutes=4), jitter=0))
    async def accept(order: Placed, context: Context) -> list[Accepted]:
        if context.attempt == 1:
            raise ValueError("flaky")
        return [Accepted(order=order.order), Accepted(order=order.order)]

    spans = Spans()
    async with bench() as it:
        await it.start(accept, tracing=spans.of("shop", it.clock))
        await it.publish(carrying(it, Placed(order="a"), ("traceparent", SAMPLED)))
        await it.settle()
        await it.pass_time(300)
        await it.settle()

    failed, done = spans.named("process Placed")
    assert spans.traces() == 1
    assert {span.parent.span_id for span in (failed, done) if span.parent} == {0xB7AD6B7169203331}
    assert len(spans.named("create Accepted")) == len(spans.named("send Accepted")) == 2, "of the second attempt"
    assert (failed.attributes or {}).items() >= {"microflow.attempt": 1, "microflow.outcome": "retry"}.items()
    assert (done.attributes or {}).items() >= {"microflow.attempt": 2, "microflow.outcome": "done"}.items()
    assert (failed.attributes or {})["error.type"] == "builtins.ValueError"
    assert (failed.status.status_code, failed.status.description) == (StatusCode.ERROR, "ValueError: flaky")
    [exception] = failed.events
    frames = str((exception.attributes or {})["exception.stacktrace"])
    assert exception.name == "exception"
    assert 'raise ValueError("flaky")' in frames
    assert "microflow/execution.py" not in frames
    assert done.status.status_code is StatusCode.UNSET


@pytest.mark.parametrize(("delay", "traces"), [(timedelta(minutes=5), 1), (timedelta(minutes=6), 2)])
def test_a_retry_that_is_due_late_begins_a_trace_that_is_linked_to_the_first(delay: timedelta, traces: int) -> None:
    @virtual
    async def scenario() -> None:
        @on("Placed", retry=Retry(attempts=2, first_delay=delay, max_delay=delay, jitter=0))
        async def accept(order: Placed, context: Context) -> Accepted:
            if context.attempt == 1:
                raise ValueError("flaky")
            return Accepted(order=order.order)

        spans = Spans()
        async with bench() as it:
            await it.start(accept, tracing=spans.of("shop", it.clock))
            await it.publish(carrying(it, Placed(order="a"), ("traceparent", SAMPLED)))
            await it.settle()
            await it.pass_time(400)
            await it.settle()

        first, second = spans.named("process Placed")
        assert spans.traces() == traces
        assert [written(link.context) for link in second.links] == [SAMPLED]
        assert of(spans.only("create Accepted")).trace_id == of(second).trace_id
        assert (first.attributes or {})[names.MESSAGING_MESSAGE_CONVERSATION_ID] == (second.attributes or {})[
            names.MESSAGING_MESSAGE_CONVERSATION_ID
        ]

    scenario()


@virtual
async def test_a_dead_letter_that_is_redriven_begins_a_trace_that_is_linked_to_the_first() -> None:
    reject = True

    @on("Placed")
    async def accept(order: Placed) -> Accepted:
        if reject:
            raise Reject("no")
        return Accepted(order=order.order)

    spans = Spans()
    async with bench() as it:
        process = await it.start(accept, tracing=spans.of("shop", it.clock))
        await it.publish(carrying(it, Placed(order="a"), ("traceparent", SAMPLED)))
        await it.settle()
        reject = False
        [letter] = await it.dead_letters()
        await process.store.dead_letters.redrive([letter.id], now=it.clock.now())
        process.worker.resume_parked()
        await it.settle()

    dead, done = spans.named("process Placed")
    assert (dead.attributes or {})["microflow.outcome"] == "dead"
    assert of(dead).trace_id != of(done).trace_id
    assert [written(link.context) for link in done.links] == [SAMPLED]
    assert done.parent is None


@virtual
async def test_an_execution_that_is_rolled_back_with_another_one_is_a_span_that_says_so_and_created_nothing() -> None:
    """Rule 4."""
    both = []

    @on("Placed")
    async def accept(order: Placed, connection: Connection) -> Accepted:
        both.append(order.order)
        await connection.execute(WRITE, "accept", order.order)
        if order.order == "b":
            raise Reject("no")
        return Accepted(order=order.order)

    spans = Spans()
    async with bench(partitions=1) as it:
        await it.publish(*(it.record(Placed(order=order)) for order in ("a", "b")))
        await it.start(accept, tracing=spans.of("shop", it.clock))
        await it.settle()

    assert both == ["a", "b", "a"]
    undone, done = (span for span in spans.named("process Placed") if _key(span) == "a")
    assert (undone.attributes or {})["microflow.rolled_back"] is True
    assert "microflow.outcome" not in (undone.attributes or {})
    assert (done.attributes or {})["microflow.outcome"] == "done"
    [create] = spans.named("create Accepted")
    assert create.parent is not None
    assert create.parent.span_id == of(done).span_id


@virtual
async def test_what_was_emitted_and_never_committed_was_never_created() -> None:
    @on("Placed", retry=Retry.never())
    async def accept(order: Placed, context: Context) -> Accepted:
        context.write("insert into nowhere values (1)")
        return Accepted(order=order.order)

    spans = Spans()
    async with bench() as it:
        await it.start(accept, tracing=spans.of("shop", it.clock))
        await it.emit(Placed(order="a"))
        await it.settle()

    assert spans.tree() == ["process Placed"]
    assert (spans.only("process Placed").attributes or {})["microflow.outcome"] == "dead"


@virtual
async def test_what_a_handler_does_hangs_under_its_attempt_in_a_thread_too() -> None:
    spans = Spans()
    tracer = spans.provider.get_tracer("theirs")

    @on("Placed")
    async def accept(order: Placed) -> None:
        with tracer.start_as_current_span("charge"):
            pass

    @on("Cancelled")
    def refund(order: Cancelled) -> None:
        with tracer.start_as_current_span("refund"):
            pass

    async with bench() as it:
        await it.start(accept, refund, tracing=spans.of("shop", it.clock))
        await it.emit(Placed(order="a"), Cancelled(order="b"))
        await it.settle()

    assert spans.tree() == [
        "process Cancelled",
        "process Cancelled > refund",
        "process Placed",
        "process Placed > charge",
    ]


@virtual
async def test_what_one_handler_leaves_in_its_context_is_not_the_next_ones() -> None:
    seen: list[trace.Span] = []

    @on("Placed")
    async def accept(order: Placed) -> None:
        seen.append(trace.get_current_span())

    spans = Spans(ParentBased(TraceIdRatioBased(0)))
    async with bench() as it:
        await it.start(accept, tracing=spans.of("shop", it.clock))
        await it.publish(carrying(it, Placed(order="a"), ("traceparent", SAMPLED)))
        await it.publish(carrying(it, Placed(order="a"), ("traceparent", UNSAMPLED)))
        await it.settle()

    assert [span.get_span_context().is_valid for span in seen] == [True, False]


@virtual
async def test_a_flow_that_nobody_samples_has_no_spans_and_its_context_goes_on() -> None:
    @on("Placed")
    async def accept(order: Placed) -> Accepted:
        return Accepted(order=order.order)

    spans = Spans()
    came_with = (("traceparent", UNSAMPLED), ("tracestate", b"theirs=1"), ("baggage", b"tenant=7"))
    async with bench() as it:
        await it.start(accept, tracing=spans.of("shop", it.clock))
        await it.publish(carrying(it, Placed(order="a"), *came_with))
        await it.settle()
        [accepted] = await it.published("Accepted")

    assert accepted.headers[-3:] == came_with
    assert spans.all() == []


@virtual
async def test_a_flow_that_begins_here_and_is_not_sampled_stays_so() -> None:
    @on("Placed")
    async def accept(order: Placed) -> Accepted:
        return Accepted(order=order.order)

    spans = Spans(ParentBased(ALWAYS_OFF))
    async with bench() as it:
        await it.start(accept, tracing=spans.of("shop", it.clock))
        await it.emit(Placed(order="a"))
        await it.settle()
        [accepted] = await it.published("Accepted")

    assert not int(traceparent_of(accepted.headers)[-2:], 16) & trace.TraceFlags.SAMPLED
    assert spans.all() == []


@virtual
async def test_baggage_and_state_go_on_with_a_flow_that_is_sampled() -> None:
    @on("Placed")
    async def accept(order: Placed) -> Accepted:
        return Accepted(order=order.order)

    spans = Spans()
    came_with = (("traceparent", SAMPLED), ("tracestate", b"theirs=1"), ("baggage", b"tenant=7"))
    async with bench() as it:
        await it.start(accept, tracing=spans.of("shop", it.clock))
        await it.publish(carrying(it, Placed(order="a"), *came_with))
        await it.settle()
        [accepted] = await it.published("Accepted")

    headers = dict(accepted.headers)
    assert headers["tracestate"] == b"theirs=1"
    assert headers["baggage"] == b"tenant=7"
    assert headers["traceparent"][3:35] == SAMPLED[3:35]


@pytest.mark.parametrize(
    ("hostile", "goes_on"),
    [
        ([("traceparent", b"00-nonsense")], {"traceparent"}),
        ([("traceparent", b"\xff" * 55)], {"traceparent"}),
        ([("traceparent", b"00-" + b"0" * 32 + b"-" + b"0" * 16 + b"-01")], {"traceparent"}),
        ([("traceparent", SAMPLED + b"x" * 9000)], {"traceparent"}),
        ([("traceparent", SAMPLED), ("traceparent", SAMPLED)], {"traceparent"}),
        ([("traceparent", SAMPLED), ("tracestate", b"a=" + b"x" * 8192)], {"traceparent"}),
        ([("traceparent", SAMPLED), ("tracestate", b"\x00,=;\xff")], {"traceparent"}),
        ([("traceparent", SAMPLED), ("baggage", b"a=" + b"x" * 60_000)], {"traceparent"}),
        ([("traceparent", SAMPLED), ("baggage", b",".join(b"k%d=v" % n for n in range(2000)))], {"traceparent"}),
        ([("traceparent", UNSAMPLED), ("baggage", b"a=" + b"x" * 60_000)], {"traceparent"}),
    ],
)
def test_what_cannot_be_read_or_is_too_much_is_left_behind_and_the_event_is_handled(
    hostile: list[tuple[str, bytes]], goes_on: set[str]
) -> None:
    @virtual
    async def scenario() -> None:
        @on("Placed")
        async def accept(order: Placed) -> Accepted:
            return Accepted(order=order.order)

        spans = Spans()
        async with bench() as it:
            process = await it.start(accept, tracing=spans.of("shop", it.clock))
            await it.publish(carrying(it, Placed(order="a"), *hostile))
            await it.settle()
            [accepted] = await it.published("Accepted")

            assert process.outcomes() == {"done": 1}
        carried = {name for name, _ in accepted.headers if not name.startswith("ce_")} - {"content-type"}
        assert carried == goes_on

    scenario()


@virtual
async def test_without_a_tracer_the_context_goes_on_unchanged() -> None:
    @on("Placed")
    async def accept(order: Placed) -> tuple[Accepted, Rejected]:
        return Accepted(order=order.order), Rejected(order=order.order)

    async with bench() as it:
        await it.start(accept)
        await it.publish(carrying(it, Placed(order="a"), ("traceparent", SAMPLED)))
        await it.settle()
        records = [*await it.published("Accepted"), *await it.published("Rejected")]

    assert [dict(record.headers)["traceparent"] for record in records] == [SAMPLED, SAMPLED]


def _key(span: object) -> object:
    return (getattr(span, "attributes", None) or {})["messaging.kafka.message.key"]
