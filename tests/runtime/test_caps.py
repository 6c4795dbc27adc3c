"""Caps: how much may be parked for a handler, and wait for a destination. At a cap what adds to it pauses, no more."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from microflow.context import Context
from microflow.events import Event
from microflow.handlers import on
from microflow.limits import Limits
from microflow.ports import TopicPartition
from microflow.retries import Retry
from microflow.transports.local import LocalTransport
from tests.runtime.bench import WRITE, Bench, Process, bench
from tests.runtime.disturbed import DisturbedLog, DisturbedStore, Moments
from tests.runtime.events import Accepted, Cancelled, Placed
from tests.runtime.telling import telling, told
from tests.runtime.virtual_loop import virtual

IN_A_MINUTE = Retry(attempts=3, first_delay=timedelta(seconds=60), jitter=0)
LIMITS = Limits(
    parked_per_handler=20, outbox_per_destination=20, failing_keys=1_000_000, in_flight=10, fetch=5, batch=5
)


class Noted(Event, key="order"):
    order: str


@on("Placed", retry=IN_A_MINUTE)
async def accept(order: Placed, context: Context) -> None:
    if context.attempt == 1:
        raise ValueError("the first time")
    context.write(WRITE, "accept", order.order)


@on("Placed")
async def note(order: Placed, context: Context) -> None:
    context.write(WRITE, "note", order.order)


@on("Cancelled")
async def cancel(order: Cancelled, context: Context) -> Noted:
    context.write(WRITE, "cancel", order.order)
    return Noted(order=order.order)


@on("Placed")
async def emit(order: Placed, context: Context) -> Accepted:
    context.write(WRITE, "emit", order.order)
    return Accepted(order=order.order)


async def place(it: Bench, count: int) -> None:
    await it.emit(*[Placed(order=f"order-{number}") for number in range(count)])


async def call_off(it: Bench, count: int) -> None:
    await it.emit(*[Cancelled(order=f"order-{number}") for number in range(count)])


def pressed(process: Process) -> list[tuple[str, str]]:
    return [(each.kind, each.name) for each in process.worker.pressed()]


@virtual
async def test_at_its_cap_of_parked_events_only_what_the_handler_reads_pauses() -> None:
    """Rule 22: "Caps are per handler (parked)"; what is parked is worked off, and at half of it reading goes on."""
    async with bench() as it:
        process = await it.start(accept, note, cancel, limits=LIMITS)
        for _ in range(10):
            await place(it, 20)
            await it.pass_time(1)
        await call_off(it, 50)
        await it.pass_time(10)

        # It is noticed within a second, and what is in hand then is finished.
        assert 20 <= await it.parked() <= 20 + 20 + 10
        assert pressed(process) == [("parked", "accept")]
        assert len(await it.effects(handler="cancel")) == 50
        assert len(await it.effects(handler="note")) < 200

        await it.pass_time(1000)
        await it.settle()

        assert pressed(process) == []
        assert len(await it.effects(handler="accept")) == len(await it.effects(handler="note")) == 200
        assert await it.parked() == 0


@virtual
async def test_at_the_cap_of_a_destination_only_what_its_emitters_read_pauses() -> None:
    """Rule 22: "per destination (outbox)": "the handlers that emit to that destination, pause"."""
    logs: list[DisturbedLog] = []

    def refusing(transport: LocalTransport) -> Any:
        logs.append(DisturbedLog(transport, Moments()))
        logs[-1].refuse = {TopicPartition("Accepted", 0)}
        return logs[-1]

    async with bench() as it:
        process = await it.start(emit, cancel, limits=LIMITS, transport=refusing)
        for _ in range(10):
            await place(it, 20)
            await it.pass_time(1)
        await call_off(it, 50)
        await it.pass_time(10)

        assert 20 <= len(await it.effects(handler="emit")) <= 20 + 20 + 10
        assert pressed(process) == [("outbox", "Accepted")]
        assert len(await it.effects(handler="cancel")) == 50
        assert len(await it.published("Noted")) == 50

        logs[0].refuse.clear()
        await it.pass_time(60)
        await it.settle()

        assert pressed(process) == []
        assert len(await it.effects(handler="emit")) == len(await it.published("Accepted")) == 200


@virtual
async def test_a_cap_is_told_once_when_it_is_reached_and_once_when_it_is_left(caplog: pytest.LogCaptureFixture) -> None:
    """Rule 22: "Readiness, log and a metric name it"."""
    async with bench() as it:
        process = await it.start(accept, limits=LIMITS)
        with telling(caplog):
            for _ in range(5):
                await place(it, 20)
                await it.pass_time(1)
            await it.pass_time(10)
            (one,) = process.worker.pressed()
            readiness = await process.worker.readiness()
            await it.pass_time(600)
            await it.settle()

        reached = told(caplog, "and no more may be")
        assert len(reached) == len(told(caplog, "accept has room for parked events again")) <= 2
        assert reached[0].startswith(__file__)
        assert "what it reads pauses (Placed)" in reached[0]
        assert set(one.topics) == {"Placed"}
        assert readiness.ready
        assert len(readiness.limited) == 1
        assert readiness.limited[0].endswith("events are parked for accept")


@virtual
async def test_what_is_parked_when_a_process_starts_counts_at_once() -> None:
    """The cap is the handler's, in all processes and lives of the service."""
    async with bench() as it:
        process = await it.start(accept, limits=replace(LIMITS, parked_per_handler=1000))
        await place(it, 100)
        await it.settle()
        await process.stop()
        await place(it, 100)

        process = await it.start(accept, limits=LIMITS)
        await it.pass_time(5)

        assert pressed(process) == [("parked", "accept")]
        assert await it.parked() <= 100 + 15


@virtual
async def test_nothing_is_counted_further_than_a_cap_nor_when_nothing_happens() -> None:
    """Counting is cheap: "never a full scan of millions"."""
    moments = Moments()
    async with bench() as it:
        process = await it.start(accept, emit, limits=LIMITS, store=lambda store: DisturbedStore(store, moments))
        await place(it, 5)
        await it.pass_time(10)
        counted = moments.count["parking.counts"]
        await it.pass_time(30)

        assert moments.count["parking.counts"] == counted <= 5
        store = await it.store()
        assert dict(await store.parking.counts(at_most=3)) == {"accept": 3}
        assert pressed(process) == []
