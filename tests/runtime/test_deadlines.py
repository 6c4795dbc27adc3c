"""Deadlines: whoever runs too long is cancelled, and that is an attempt."""

from __future__ import annotations

import asyncio
import inspect
import logging
import threading
from datetime import timedelta

import pytest

from microflow.connection import Connection
from microflow.context import Context
from microflow.errors import HandlerTimeout
from microflow.handlers import on
from microflow.limits import Limits
from microflow.retries import Retry
from tests.runtime.bench import WRITE, bench
from tests.runtime.events import Accepted, Placed
from tests.runtime.virtual_loop import VirtualLoop, jump_over_threads, virtual

ONCE_MORE = Retry(attempts=2, first_delay=timedelta(seconds=1), jitter=0)


@virtual
async def test_an_async_handler_past_its_deadline_is_cancelled_and_that_is_an_attempt() -> None:
    """Rule 3."""
    cancelled: list[int] = []

    @on("Placed", deadline=timedelta(seconds=5), retry=ONCE_MORE)
    async def accept(order: Placed, context: Context) -> None:
        try:
            await asyncio.sleep(1000 if context.attempt == 1 else 4)
        except asyncio.CancelledError:
            cancelled.append(context.attempt)
            raise
        context.write(WRITE, "accept", str(context.attempt))

    async with bench() as it:
        process = await it.start(accept)
        await it.emit(Placed(order="a"))
        await it.pass_time(4.9)
        assert process.reports == []
        await it.pass_time(0.2)
        (report,) = process.reports
        assert isinstance(report.error, HandlerTimeout)
        assert "5 s" in str(report.error)
        await it.pass_time(10)

        assert cancelled == [1]
        assert await it.effects() == ["2"]


@pytest.mark.parametrize("inside", [False, True], ids=["outside", "inside a transaction"])
def test_a_handler_that_catches_its_cancellation_and_returns_has_failed_all_the_same(inside: bool) -> None:
    """Rule 3: what it returns then is not what it would have done."""

    async def work(context: Context) -> Accepted | None:
        try:
            await asyncio.sleep(1000 if context.attempt == 1 else 1)
        except asyncio.CancelledError:
            return None
        return Accepted(order="a")

    @on("Placed", deadline=timedelta(seconds=5), retry=ONCE_MORE)
    async def accept(order: Placed, context: Context) -> Accepted | None:
        return await work(context)

    @on("Placed", deadline=timedelta(seconds=5), retry=ONCE_MORE)
    async def accept_inside(order: Placed, context: Context, connection: Connection) -> Accepted | None:
        return await work(context)

    @virtual
    async def scenario() -> None:
        async with bench() as it:
            process = await it.start(accept_inside if inside else accept)
            await it.emit(Placed(order="a"))
            await it.pass_time(10)

            assert process.outcomes() == {"retry": 1, "done": 1}
            assert len(await it.published("Accepted")) == 1

    scenario()


@virtual
async def test_handlers_without_a_deadline_of_their_own_have_that_of_the_settings() -> None:
    """Rule 3."""

    @on("Placed", retry=Retry.never())
    async def accept(order: Placed) -> None:
        await asyncio.sleep(1000)

    async with bench() as it:
        await it.start(accept, limits=Limits(deadline=timedelta(seconds=20)))
        await it.emit(Placed(order="a"), Placed(order="a"))
        await it.pass_time(39)
        assert len(await it.dead_letters()) == 1
        await it.pass_time(2)

        assert len(await it.dead_letters()) == 2


@virtual
async def test_a_plain_handler_past_its_deadline_keeps_its_key_closed_until_its_thread_ends() -> None:
    """Rule 3."""
    go_on = threading.Event()
    started: list[int] = []

    @on("Placed", deadline=timedelta(seconds=5), retry=Retry.never())
    def accept(order: Placed, context: Context) -> None:
        started.append(order.number)
        if order.number == 1:
            go_on.wait(10)
        context.write(WRITE, "accept", str(order.number))

    async with bench() as it:
        process = await it.start(accept)
        await it.emit(Placed(order="a", number=1), Placed(order="a", number=2))
        for _ in range(10_000):
            if not started:
                await asyncio.sleep(0)
        jump_over_threads()
        await it.pass_time(60)
        assert started == [1]
        go_on.set()
        _join_threads()
        await it.settle()

        assert await it.effects() == ["2"]  # its own late result does not count
        assert isinstance(process.told("dead")[0].error, HandlerTimeout)


def _join_threads() -> None:
    for thread in threading.enumerate():
        if thread.name.startswith("microflow-"):
            thread.join()


@virtual
async def test_a_connection_handler_holds_its_transaction_no_longer_than_its_deadline() -> None:
    """Rules 3 and 16: and what it wrote is undone."""

    @on("Placed", retry=ONCE_MORE)
    async def accept(order: Placed, connection: Connection, context: Context) -> None:
        await connection.execute(WRITE, "accept", f"{order.order}{context.attempt}")
        if order.order == "slow" and context.attempt == 1:
            await asyncio.sleep(1000)

    async with bench() as it:
        process = await it.start(accept, limits=Limits(connection_deadline=timedelta(seconds=3)))
        await it.emit(Placed(order="slow"), Placed(order="quick"))
        await it.pass_time(3.5)
        assert await it.effects() == ["quick1"]
        assert isinstance(process.told("retry")[0].error, HandlerTimeout)
        await it.pass_time(5)

        assert await it.effects() == ["quick1", "slow2"]


@virtual
async def test_a_connection_handler_that_waits_for_somebody_else_is_named_with_its_line(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Architecture §2: "a foreign wait over a second is logged with file and line"."""

    @on("Placed")
    async def accept(order: Placed, connection: Connection) -> None:
        await asyncio.sleep(2)

    async with bench() as it:
        await it.start(accept)
        logging.getLogger("microflow").setLevel(logging.WARNING)
        try:
            with caplog.at_level(logging.WARNING):
                await it.emit(Placed(order="a"))
                await it.pass_time(3)
        finally:
            logging.getLogger("microflow").setLevel(logging.CRITICAL)

        line = inspect.getsourcelines(accept)[1] + 2
        assert any(f"{__file__}:{line}" in record.getMessage() for record in caplog.records)


@virtual
async def test_a_deadline_counts_from_the_beginning_of_the_execution_and_not_from_its_arrival() -> None:
    """Rule 3: who waits for the others of its key, or for room, does not use up its time."""

    @on("Placed", deadline=timedelta(seconds=5), retry=Retry.never())
    async def accept(order: Placed, context: Context) -> None:
        await asyncio.sleep(4)
        context.write(WRITE, "accept", str(order.number))

    async with bench() as it:
        await it.start(accept, limits=Limits(concurrency=1))
        await it.emit(*[Placed(order=f"{number % 2}", number=number) for number in range(4)])
        await it.pass_time(20)

        assert sorted(await it.effects()) == ["0", "1", "2", "3"]


@virtual
async def test_a_handler_that_blocks_the_loop_past_its_deadline_is_told_of_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Nobody can cancel it, and everybody else waits."""

    @on("Placed", deadline=timedelta(seconds=1))
    async def accept(order: Placed) -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        loop.elapsed += 3

    async with bench() as it:
        logging.getLogger("microflow").setLevel(logging.WARNING)
        with caplog.at_level(logging.WARNING):
            process = await it.start(accept)
            for count in (1, 2):
                await it.emit(Placed(order="a"))
                await it.until(lambda: len(process.reports) == count)  # noqa: B023 - called before the next turn

        assert process.outcomes() == {"done": 2}
        (told,) = [each.getMessage() for each in caplog.records if "stood still" in each.getMessage()]
        assert told.startswith(f"{__file__}:{accept.__code__.co_firstlineno}  accept ended 2.0 s after its deadline")
