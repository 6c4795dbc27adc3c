"""A worker: when it is ready, how it stops, and what it is given."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import pytest

from microflow.context import Context
from microflow.errors import DefinitionError, TransportError
from microflow.handlers import on
from microflow.retries import Retry
from microflow.transports.local import LocalTransport
from tests.runtime.bench import WRITE, Gate, bench
from tests.runtime.disturbed import DisturbedLog, DisturbedStore, Moments
from tests.runtime.events import Accepted, Placed
from tests.runtime.virtual_loop import jump_over_threads, virtual


class Purse:
    """What a lifespan might provide."""


class Missing:
    """A log that creates no topics by itself, as Kafka in production."""

    def __init__(self, transport: LocalTransport, *missing: str) -> None:
        self._transport = transport
        self._missing = set(missing)

    def __getattr__(self, name: str) -> Any:
        return self if name == "topics" else getattr(self._transport, name)

    async def ensure(self, names: Collection[str]) -> frozenset[str]:
        await self._transport.topics.ensure(set(names) - self._missing)
        return frozenset(names) & frozenset(self._missing)

    async def cluster_id(self) -> str:
        return await self._transport.topics.cluster_id()

    async def describe(self, names: Collection[str] | None = None) -> Any:
        return await self._transport.topics.describe(names)

    async def bounds(self, partitions: Any) -> Any:
        return await self._transport.topics.bounds(partitions)


@on("Placed")
async def accept(order: Placed, context: Context) -> Accepted:
    context.write(WRITE, "accept", order.order)
    return Accepted(order=order.order)


@virtual
async def test_a_member_without_a_partition_is_ready_too() -> None:
    """Rule 23: "joined the group (zero partitions counts)"."""
    async with bench(partitions=1) as it:
        await it.start(accept)
        second = await it.start(accept)  # returns

        assert second.worker._watermarks.positions() == {}
        assert not second.worker._intake.rebalancing


@virtual
async def test_a_missing_topic_that_is_emitted_to_stops_the_start_with_the_line_to_type() -> None:
    """Rule 23."""
    async with bench() as it:
        with pytest.raises(DefinitionError) as refusal:
            await it.start(accept, transport=lambda transport: Missing(transport, "Accepted"))

        assert "Accepted" in str(refusal.value)
        assert "microflow topics apply" in str(refusal.value)


@virtual
async def test_a_missing_topic_that_is_read_is_a_warning_and_picked_up_when_it_appears(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Rule 23."""
    async with bench() as it:
        await it.log.topics.ensure(["Places"])
        logging.getLogger("microflow").setLevel(logging.WARNING)
        try:
            with caplog.at_level(logging.WARNING):
                await it.start(accept, transport=lambda transport: Missing(transport, "Placed"))
        finally:
            logging.getLogger("microflow").setLevel(logging.CRITICAL)
        warning = "shop reads Placed, which the log does not have yet; did you mean Places?"
        assert warning in [record.getMessage() for record in caplog.records]
        await it.emit(Placed(order="a"))
        await it.pass_time(2)
        await it.settle()

        assert await it.effects() == ["a"]


@virtual
async def test_a_stop_finishes_what_runs_publishes_it_and_takes_nothing_new() -> None:
    """Rule 24."""
    gate, started = Gate(), []

    @on("Placed")
    async def slow(order: Placed, context: Context) -> Accepted:
        started.append(order.number)
        await gate.pass_through(str(order.number))
        context.write(WRITE, "slow", str(order.number))
        return Accepted(order=order.order, number=order.number)

    async with bench() as it:
        process = await it.start(slow)
        await it.emit(Placed(order="a", number=1), Placed(order="a", number=2), Placed(order="b", number=3))
        await it.until(lambda: len(gate.waiting) == 2)
        stopping = asyncio.get_running_loop().create_task(process.stop(drain=timedelta(seconds=30)))
        await it.pass_time(1)
        await it.emit(Placed(order="c", number=4))
        gate.open()

        assert await stopping
        assert sorted(await it.effects()) == ["1", "3"]
        assert sorted(started) == [1, 3]
        assert len(await it.published("Accepted")) == 2
        assert it.clock.monotonic() < timedelta(seconds=5)
        second = await it.start(slow)
        await it.settle()
        assert sorted(await it.effects()) == ["1", "2", "3", "4"]
        assert second.outcomes()["done"] == 2


@virtual
async def test_a_stop_does_not_wait_longer_than_its_drain_for_a_handler() -> None:
    """Rule 24: what is cut off is done again."""
    cancelled: list[int] = []

    @on("Placed")
    async def slow(order: Placed, context: Context) -> None:
        try:
            await asyncio.sleep(50 if not cancelled else 0)
        except asyncio.CancelledError:
            cancelled.append(order.number)
            raise
        context.write(WRITE, "slow", str(order.number))

    async with bench() as it:
        process = await it.start(slow)
        await it.emit(Placed(order="a", number=1))
        await it.pass_time(1)
        before = it.clock.monotonic()

        assert not await process.stop(drain=timedelta(seconds=8))
        assert it.clock.monotonic() - before <= timedelta(seconds=8)
        assert cancelled == [1]
        await it.start(slow)
        await it.settle()
        assert await it.effects() == ["1"]


@virtual
async def test_a_stop_does_not_wait_for_a_thread() -> None:
    """Rule 24."""
    go_on = threading.Event()

    @on("Placed")
    def hangs(order: Placed) -> None:
        go_on.wait(10)

    async with bench() as it:
        process = await it.start(hangs)
        await it.emit(Placed(order="a"))
        jump_over_threads()
        await it.pass_time(1)
        before = it.clock.monotonic()

        assert not await process.stop(drain=timedelta(seconds=2))
        assert it.clock.monotonic() - before <= timedelta(seconds=2)
        go_on.set()


@virtual
async def test_a_stop_does_not_wait_for_a_handler_that_will_not_end() -> None:
    """Rule 24."""
    may_end = asyncio.Event()

    @on("Placed")
    async def stubborn(order: Placed) -> None:
        while not may_end.is_set():
            try:
                await may_end.wait()
            except asyncio.CancelledError:
                continue

    async with bench() as it:
        process = await it.start(stubborn)
        await it.emit(Placed(order="a"))
        await it.pass_time(1)
        before = it.clock.monotonic()

        assert not await process.stop(drain=timedelta(seconds=8))
        assert it.clock.monotonic() - before < timedelta(seconds=10)
        may_end.set()
        await it.pass_time(0.1)


@virtual
async def test_a_stop_does_not_wait_for_a_database_that_somebody_else_has_locked() -> None:
    """Rule 24: "all phases of a stop fit into `--drain`"."""
    async with bench() as it:
        process = await it.start(accept)
        await it.emit(Placed(order="a"))
        await it.settle()
        store = await it.store()
        other = store._database.connect()
        other.execute("begin immediate")
        try:
            await it.emit(Placed(order="b"))
            await it.pass_time(0.5)
            before = it.clock.monotonic()
            assert not await process.stop(drain=timedelta(seconds=4))
            assert it.clock.monotonic() - before < timedelta(seconds=6)
        finally:
            other.execute("rollback")
            other.close()


@virtual
async def test_a_stop_during_an_outage_ends_in_time_and_nothing_is_lost() -> None:
    """Rule 24: "nothing in a stop is needed for correctness"."""
    moments = Moments()
    async with bench() as it:
        process = await it.start(accept, store=lambda store: DisturbedStore(store, moments))
        moments.out = True
        await it.emit(Placed(order="a"))
        await it.pass_time(1)
        before = it.clock.monotonic()
        assert not await process.stop(drain=timedelta(seconds=4))
        assert it.clock.monotonic() - before < timedelta(seconds=6)
        await it.start(accept)
        await it.settle()

        assert await it.effects() == ["a"]


@virtual
async def test_a_stop_leaves_what_the_log_does_not_take_for_the_next_start() -> None:
    """Rule 24."""
    moments = Moments()
    async with bench() as it:
        process = await it.start(accept, transport=lambda transport: DisturbedLog(transport, moments))
        moments.plan("publish", *[TransportError("no broker") for _ in range(50)])
        await it.emit(Placed(order="a"))
        await it.pass_time(1)

        assert not await process.stop(drain=timedelta(seconds=4))
        await it.start(accept)
        await it.settle()
        assert len(await it.published("Accepted")) == 1


@virtual
async def test_a_member_that_stops_leaves_its_partitions_at_once() -> None:
    """Rule 24."""
    async with bench() as it:
        first = await it.start(accept)
        second = await it.start(accept)
        await first.stop()
        await it.pass_time(0.1)

        assert len(second.worker._watermarks.positions()) == 1


@virtual
async def test_a_lifespan_is_entered_before_the_first_event_and_left_when_the_service_ends() -> None:
    """Architecture §2."""
    told: list[str] = []

    @asynccontextmanager
    async def lifespan() -> AsyncIterator[Mapping[Any, Any]]:
        told.append("entered")
        yield {list: told}
        told.append("left")

    @on("Placed")
    async def note(order: Placed, notes: list) -> None:  # type: ignore[type-arg] # a dependency is known by its class
        notes.append(order.order)

    async with bench() as it:
        process = await it.start(note, lifespan=lifespan)
        await it.emit(Placed(order="a"))
        await it.settle()
        await process.stop()

        assert told == ["entered", "a", "left"]


@virtual
async def test_a_lifespan_that_is_never_left_does_not_outlive_the_stop() -> None:
    """Rule 24: "all phases of a stop fit into `--drain`"."""
    told: list[str] = []

    @asynccontextmanager
    async def lifespan() -> AsyncIterator[Mapping[Any, Any]]:
        async with asyncio.TaskGroup():  # must be left by the task that has entered it
            try:
                yield {}
                await asyncio.Event().wait()
            finally:
                told.append("cut short")

    async with bench() as it:
        process = await it.start(accept, lifespan=lifespan)
        before = it.clock.monotonic()
        assert await process.stop(drain=timedelta(seconds=5))

        assert told == ["cut short"]
        assert it.clock.monotonic() - before <= timedelta(seconds=5.1)


@virtual
async def test_a_lifespan_is_left_when_the_start_is_refused() -> None:
    """Architecture §2: what was opened is closed."""
    told: list[str] = []

    @asynccontextmanager
    async def lifespan() -> AsyncIterator[Mapping[Any, Any]]:
        told.append("entered")
        yield {}
        told.append("left")

    @on("Placed")
    async def note(order: Placed, notes: dict) -> None: ...  # type: ignore[type-arg] # a dependency is known by its class

    async with bench() as it:
        with pytest.raises(DefinitionError, match="nobody provides it"):
            await it.start(note, lifespan=lifespan)

        assert told == ["entered", "left"]


@pytest.mark.parametrize(
    ("given", "what"),
    [
        ({Purse: Purse()}, "lifespan returns dict, which is no async context manager."),
        (contextlib.nullcontext([Purse()]), "lifespan yields list, and handlers are given what it maps from types."),
    ],
    ids=["a mapping", "a list"],
)
def test_a_lifespan_that_gives_something_else_is_told(given: Any, what: str) -> None:
    @on("Placed")
    async def accept(order: Placed, purse: Purse) -> None: ...

    @virtual
    async def scenario() -> None:
        async with bench() as it:
            with pytest.raises(DefinitionError) as told:
                await it.start(accept, lifespan=lambda: given)

        assert told.value.what == what

    scenario()


@virtual
async def test_a_worker_that_cannot_go_on_says_why() -> None:
    """A task that ends takes the service with it; nobody works on without it."""

    @on("Placed", retry=Retry.never())
    async def note(order: Placed) -> None: ...

    async with bench() as it:
        process = await it.start(note)
        process.worker._begin(_broken(), "broken")
        with pytest.raises(ZeroDivisionError):
            await process.worker.ended()
        assert isinstance(process.worker.failure, ZeroDivisionError)


async def _broken() -> None:
    raise ZeroDivisionError


@virtual
async def test_a_worker_is_not_idle_while_a_rebalance_is_under_way() -> None:
    """What `settle` of a World rests on."""
    moments, gate = Moments(), Gate()
    async with bench() as it:
        first = await it.start(accept, store=lambda store: DisturbedStore(store, moments))
        assert await first.worker.idle()
        moments.plan("partitions.take", lambda: gate.pass_through("take"))
        await first.transport.disconnect()
        await it.until(lambda: gate.waiting)

        assert not await first.worker.idle()
        gate.open()
        await it.settle()
        assert await first.worker.idle()
