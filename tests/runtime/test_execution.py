"""Executions: what a handler is given, what is taken from it, and what it may throw."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import timedelta
from typing import Annotated, Any

import pytest

from microflow.context import Context
from microflow.errors import ContractError
from microflow.handlers import on
from microflow.retries import Retry
from microflow.service import CallNext
from tests.runtime.bench import WRITE, bench
from tests.runtime.events import Accepted, Cancelled, Placed, Rejected
from tests.runtime.virtual_loop import virtual

NEVER = Retry.never()


class Cards:
    name = "cards"


class Panic(BaseException):
    """As PyO3's PanicException, and pytest's own failures: no Exception."""


class Mute(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


FAILURES: dict[str, Callable[[], BaseException]] = {
    "an error": lambda: ValueError("no"),
    "a cancellation of its own": lambda: asyncio.CancelledError("mine"),
    "an exit": lambda: SystemExit(3),
    "no memory": lambda: MemoryError(),
    "a group": lambda: ExceptionGroup("several", [ValueError("one"), TypeError("two")]),
    "a group of panics": lambda: BaseExceptionGroup("several", [Panic("one")]),
    "a panic": lambda: Panic("of a library in Rust"),
    "a generator's exit": lambda: GeneratorExit(),
    "an end of iteration": lambda: StopAsyncIteration(),
    "too deep": lambda: RecursionError("maximum recursion depth exceeded"),
    "a time-out": lambda: TimeoutError(),
    "half a character": lambda: ValueError("\ud800\x00"),
    "an error without a text": lambda: Mute(),
    "a novel": lambda: ValueError("long " * 1_000_000),
}


@pytest.mark.parametrize("plain", [False, True], ids=["async", "plain"])
@pytest.mark.parametrize("name", FAILURES)
def test_whatever_a_handler_throws_is_an_attempt_and_nobody_elses_affair(name: str, plain: bool) -> None:
    """Rule 5: "otherwise it is an attempt of the handler that ran, whatever class the exception has"."""

    @virtual
    async def scenario() -> None:
        @on("Placed", name="accept", retry=Retry(attempts=2, first_delay=timedelta(seconds=1)))
        async def accept(order: Placed, context: Context) -> None:
            if order.order == "bad":
                raise FAILURES[name]()
            context.write(WRITE, "accept", order.order)

        @on("Placed", name="accept", retry=Retry(attempts=2, first_delay=timedelta(seconds=1)))
        def accept_in_thread(order: Placed, context: Context) -> None:
            if order.order == "bad":
                raise FAILURES[name]()
            context.write(WRITE, "accept", order.order)

        async with bench() as it:
            process = await it.start(accept_in_thread if plain else accept)
            await it.emit(Placed(order="bad"), Placed(order="good"), Placed(order="bad"))
            await it.settle()
            await it.pass_time(5)
            await it.settle()

            assert await it.effects() == ["good"]
            assert process.outcomes() == {"retry": 2, "waiting": 1, "dead": 2, "done": 1}
            for letter in await it.dead_letters():
                assert letter.attempts == 2
                assert 0 < len(letter.error) < 10_000
                letter.error.encode()

    scenario()


@pytest.mark.parametrize(
    "junk",
    [
        1,
        "text",
        b"bytes",
        {"a": 1},
        Cancelled(order="a"),
        [None, object()],
        Accepted,
        (Accepted(order="a"), 3),
        iter([Cancelled(order="a")]),
        NotImplemented,
        float("nan"),
    ],
    ids=lambda junk: type(junk).__name__,
)
def test_a_handler_that_returns_junk_is_refused_and_nothing_is_written(junk: object) -> None:
    """Architecture §2: "returning something undeclared is a `ContractError` with file and line"."""

    @virtual
    async def scenario() -> None:
        @on("Placed", retry=Retry(attempts=5))
        async def accept(order: Placed, context: Context) -> Accepted:
            context.write(WRITE, "accept", order.order)
            return junk  # type: ignore[return-value] # that is the point

        async with bench() as it:
            await it.start(accept)
            await it.emit(Placed(order="a"))
            await it.settle()

            (letter,) = await it.dead_letters()
            assert (letter.reason, letter.attempts) == ("contract", 1)
            assert __file__ in letter.error
            assert await it.effects() == []

    scenario()


@virtual
async def test_what_a_handler_yields_is_drained_while_it_runs() -> None:
    """Architecture §2: in a plain handler in its thread."""
    threads: list[str] = []

    @on("Placed")
    async def stream(order: Placed) -> AsyncIterator[Accepted]:
        for number in range(3):
            await asyncio.sleep(0)
            yield Accepted(order=order.order, number=number)

    @on("Placed")
    def plain(order: Placed) -> Iterator[Rejected]:
        for _ in range(2):
            threads.append(threading.current_thread().name)
            yield Rejected(order=order.order)

    async with bench() as it:
        await it.start(stream, plain)
        await it.emit(Placed(order="a"))
        await it.settle()

        assert len(await it.published("Accepted")) == 3
        assert len(await it.published("Rejected")) == 2
        assert set(threads) == {"microflow-plain"}


@virtual
async def test_middleware_is_called_in_its_order_around_every_execution() -> None:
    """Architecture §2: "plain functions `(call_next, event, context)`", the first one outermost."""
    told: list[str] = []

    async def outer(call_next: CallNext, event: Any, context: Context) -> Any:
        told.append(f"outer {type(event).__name__} {context.handler}")
        try:
            return await call_next(event, context)
        finally:
            told.append("outer is left")

    async def inner(call_next: CallNext, event: Any, context: Context) -> Any:
        told.append("inner")
        result = await call_next(event, context)
        told.append("inner is left")
        return result

    @on("Placed", retry=NEVER)
    async def accept(order: Placed) -> Accepted:
        told.append("accept")
        if order.number:
            raise ValueError("no")
        return Accepted(order=order.order)

    @on("Cancelled")
    def cancel(order: Cancelled) -> None:
        told.append("cancel")

    async with bench() as it:
        await it.start(accept, cancel, middleware=[outer, inner])
        await it.emit(Placed(order="a"))
        await it.settle()
        assert told == ["outer Placed accept", "inner", "accept", "inner is left", "outer is left"]
        told.clear()
        await it.emit(Placed(order="a", number=1))
        await it.settle()
        assert told == ["outer Placed accept", "inner", "accept", "outer is left"]
        told.clear()
        await it.emit(Cancelled(order="a"))
        await it.settle()
        assert told == ["outer Cancelled cancel", "inner", "cancel", "inner is left", "outer is left"]
        assert len(await it.published("Accepted")) == 1


@virtual
async def test_a_middleware_that_forgets_its_return_is_blamed_and_not_the_handler() -> None:
    async def forgetful(call_next: CallNext, event: Any, context: Context) -> Any:
        await call_next(event, context)

    async def faithful(call_next: CallNext, event: Any, context: Context) -> Any:
        return await call_next(event, context)

    @on("Placed")
    async def accept(order: Placed) -> Accepted:
        return Accepted(order=order.order)

    async with bench() as it:
        process = await it.start(accept, middleware=[faithful, forgetful, faithful])
        await it.emit(Placed(order="a"))
        await it.settle()

        (report,) = process.told("dead")
        assert isinstance(report.error, ContractError)
        assert "forgetful returned None" in report.error.what
        assert report.error.where == f"{__file__}:{forgetful.__code__.co_firstlineno}"


@virtual
async def test_middleware_may_answer_instead_of_the_handler_and_change_the_event() -> None:
    """Architecture §2."""
    handled: list[int] = []

    async def short(call_next: CallNext, event: Placed, context: Context) -> Any:
        if event.number == 1:
            return Accepted(order="from the middleware")
        return await call_next(event.model_copy(update={"number": event.number * 10}), context)

    @on("Placed")
    async def accept(order: Placed) -> Accepted:
        handled.append(order.number)
        return Accepted(order=order.order)

    async with bench() as it:
        await it.start(accept, middleware=[short])
        await it.emit(Placed(order="a", number=1), Placed(order="b", number=2))
        await it.settle()

        assert handled == [20]
        assert {record.key for record in await it.published("Accepted")} == {b"from the middleware", b"b"}


@virtual
async def test_dependencies_are_found_by_type_and_by_annotation_and_defaults_are_left_alone() -> None:
    """Architecture §2."""
    given: list[object] = []

    @on("Placed")
    async def accept(
        order: Placed,
        cards: Cards,
        limit: Annotated[int, "limit"],
        unknown: Rates | None = None,
        known: Cards | None = None,
        number: int = 7,
    ) -> None:
        given.extend([cards, limit, unknown, known, number])

    cards = Cards()
    async with bench() as it:
        await it.start(accept, dependencies={Cards: cards, Annotated[int, "limit"]: 3})
        await it.emit(Placed(order="a"))
        await it.settle()

        assert given == [cards, 3, None, cards, 7]


class Rates:
    """A dependency that nobody provides."""


@virtual
async def test_an_async_generator_is_entered_for_each_execution_and_left_after_it() -> None:
    """Architecture §2: "a value that is an async generator function of `Context` is entered for each execution"."""
    told: list[str] = []

    async def session(context: Context) -> AsyncIterator[Cards]:
        told.append(f"open {context.key}{context.attempt}")
        try:
            yield Cards()
        except ValueError:
            told.append("failed")
            raise
        finally:
            told.append(f"close {context.key}{context.attempt}")

    @on("Placed", retry=Retry(attempts=2, first_delay=timedelta(seconds=1)))
    async def accept(order: Placed, cards: Cards, context: Context) -> None:
        told.append(cards.name)
        if context.attempt == 1:
            raise ValueError("no")

    @on("Cancelled")
    def plain(order: Cancelled, cards: Cards) -> None:
        told.append("plain")

    async with bench() as it:
        await it.start(accept, plain, dependencies={Cards: session})
        await it.emit(Placed(order="a"))
        await it.pass_time(3)
        await it.settle()
        assert told == ["open a1", "cards", "failed", "close a1", "open a2", "cards", "close a2"]
        told.clear()
        await it.emit(Cancelled(order="b"))
        await it.settle()
        assert told == ["open b1", "plain", "close b1"]


@virtual
async def test_an_error_in_leaving_a_dependency_is_an_attempt() -> None:
    """Rule 5."""

    async def session(context: Context) -> AsyncIterator[Cards]:
        yield Cards()
        if context.attempt == 1:
            raise ConnectionError("it broke when it was given back")

    @on("Placed", retry=Retry(attempts=2, first_delay=timedelta(seconds=1)))
    async def accept(order: Placed, cards: Cards, context: Context) -> None:
        context.write(WRITE, "accept", str(context.attempt))

    async with bench() as it:
        process = await it.start(accept, dependencies={Cards: session})
        await it.emit(Placed(order="a"))
        await it.pass_time(3)
        await it.settle()

        assert await it.effects() == ["2"]
        assert process.outcomes() == {"retry": 1, "done": 1}


@virtual
async def test_a_plain_handler_runs_in_a_thread_with_the_context_variables_of_its_execution() -> None:
    """Architecture §2."""
    flow: contextvars.ContextVar[str] = contextvars.ContextVar("flow", default="none")
    seen: list[tuple[str, bool]] = []

    async def traced(call_next: CallNext, event: Placed, context: Context) -> Any:
        flow.set(event.order)
        return await call_next(event, context)

    @on("Placed")
    def accept(order: Placed, context: Context) -> Accepted:
        seen.append((flow.get(), threading.current_thread() is threading.main_thread()))
        context.write(WRITE, "accept", order.order)
        return Accepted(order=order.order)

    async with bench() as it:
        await it.start(accept, middleware=[traced])
        await it.emit(Placed(order="a"), Placed(order="b"))
        await it.settle()

        assert sorted(seen) == [("a", False), ("b", False)]
        assert flow.get() == "none"
        assert sorted(await it.effects()) == ["a", "b"]
        assert len(await it.published("Accepted")) == 2


@virtual
async def test_a_context_says_what_is_to_be_known() -> None:
    """Architecture §2."""
    seen: list[Context] = []

    @on("Placed", retry=Retry(attempts=2, first_delay=timedelta(seconds=60), jitter=0))
    async def accept(order: Placed, context: Context) -> None:
        seen.append(context)
        if context.attempt == 1:
            raise ValueError("no")

    @on("Placed")
    async def other(order: Placed, context: Context) -> None:
        seen.append(context)

    async with bench() as it:
        (record,) = await it.emit(Placed(order="a"))
        await it.start(accept, other)
        await it.pass_time(70)
        await it.settle()

        first, beside, second = seen
        headers = dict(record.headers)
        assert first.event_id == headers["ce_id"].decode() == first.correlation_id
        assert (first.key, first.causation_id, first.attempt, second.attempt) == ("a", None, 1, 2)
        assert (first.record.topic, first.record.partition, first.record.offset) == ("Placed", 0, 0)
        assert second.now - first.now >= timedelta(seconds=60)
        assert first.idempotency_key() == second.idempotency_key() != first.idempotency_key("refund")
        assert beside.idempotency_key() != first.idempotency_key()


@virtual
async def test_a_write_after_the_handler_returned_is_refused() -> None:
    """`Context.write`: what comes too late would be lost silently."""
    kept: list[Context] = []

    @on("Placed")
    async def accept(order: Placed, context: Context) -> None:
        kept.append(context)

    async with bench() as it:
        await it.start(accept)
        await it.emit(Placed(order="a"))
        await it.settle()

        with pytest.raises(Exception, match="after accept had returned"):
            kept[0].write(WRITE, "accept", "late")
