"""Circuits: what a handler fails for in a row is not the events; so they wait, and one at a time tries again."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from itertools import pairwise
from typing import Any

import pytest

from microflow.connection import Connection
from microflow.context import Context
from microflow.errors import Reject
from microflow.events import Message
from microflow.handlers import on
from microflow.limits import Limits
from microflow.retries import Retry
from tests.runtime.bench import WRITE, Process, bench
from tests.runtime.events import Accepted, Cancelled, Placed
from tests.runtime.telling import telling, told
from tests.runtime.virtual_loop import virtual

PATIENT = Retry(attempts=50, first_delay=timedelta(seconds=1), jitter=0)
LIMITS = Limits(failing_keys=5, concurrency=4, in_flight=100, fetch=50, batch=50)


class Api:
    """Something that a handler calls, which may be away. It remembers when it was called, and by whom at once."""

    def __init__(self, *, takes: float = 0.001) -> None:
        self.is_away = False
        self.takes = takes
        self.calls: list[float] = []
        self.at_once = 0
        self.most_at_once = 0

    async def call(self) -> None:
        self.calls.append(asyncio.get_running_loop().time())
        self.at_once += 1
        self.most_at_once = max(self.at_once, self.most_at_once)
        try:
            await asyncio.sleep(self.takes)
        finally:
            self.at_once -= 1
        if self.is_away:
            raise ConnectionError("the card company does not answer")


def charging(api: Api, *, retry: Retry = PATIENT) -> Any:
    @on("Placed", retry=retry)
    async def charge(order: Placed, context: Context) -> Accepted:
        await api.call()
        context.write(WRITE, "charge", f"{order.order}/{order.number}/{context.attempt}")
        return Accepted(order=order.order)

    return charge


def orders(count: int, *, number: int = 0, keys: int | None = None) -> list[Message]:
    return [Placed(order=f"order-{each % (keys or count)}", number=number + each) for each in range(count)]


def circuit(process: Process) -> list[str]:
    return [each.name for each in process.worker.pressed() if each.kind == "circuit"]


@virtual
async def test_a_mass_failure_parks_about_as_many_events_as_it_takes_to_notice_it() -> None:
    """Rule 22: "Nothing is parked by a circuit"."""
    api = Api()
    async with bench(partitions=3) as it:
        process = await it.start(charging(api), limits=LIMITS)
        api.is_away = True
        await it.emit(*orders(4_000))
        await it.pass_time(60)

        tries = 6  # after 1, 2, 4, 8, 16 and 30 seconds
        assert await it.parked() <= 5 + 4 + tries
        assert circuit(process) == ["charge"]
        assert process.outcomes().keys() == {"retry"}
        assert process.worker._watermarks.unfinished <= 100 + 50, "the others are not even read"

        api.is_away = False
        await it.pass_time(100)  # the rest before the next try is up to 38 seconds by now
        await it.settle()

        assert circuit(process) == []
        effects = await it.effects()
        assert len(effects) == len(set(effects)) == 4_000
        assert await it.dead_letters() == []
        # Who waited for the circuit has made no attempt by that.
        assert sum(not effect.endswith("/1") for effect in effects) <= 5 + 4 + tries


@virtual
async def test_handlers_inside_the_transaction_are_held_back_too() -> None:
    """Rule 22: they are begun by the transaction, one after another."""
    api = Api()

    @on("Placed", retry=PATIENT)
    async def charge(order: Placed, connection: Connection) -> None:
        await api.call()
        await connection.execute(WRITE, "charge", order.order)

    async with bench() as it:
        process = await it.start(charge, limits=LIMITS)
        api.is_away = True
        await it.emit(*orders(300))
        await it.pass_time(10)
        assert await it.parked() <= 5 + 4
        assert circuit(process) == ["charge"]

        api.is_away = False
        await it.pass_time(60)
        await it.settle()

        assert sorted(await it.effects()) == sorted(f"order-{number}" for number in range(300))


@virtual
async def test_the_topics_of_other_handlers_go_on() -> None:
    """Rule 22: "only the topics that this handler reads … pause", although its events fill what may be in flight."""
    api = Api()

    @on("Cancelled")
    async def cancel(order: Cancelled, context: Context) -> None:
        context.write(WRITE, "cancel", order.order)

    async with bench() as it:
        process = await it.start(charging(api), cancel, limits=LIMITS)
        api.is_away = True
        await it.emit(*orders(500))
        await it.until(lambda: circuit(process))
        await it.pass_time(1)
        for number in range(300):
            await it.emit(Cancelled(order=f"order-{number}"))
        await it.pass_time(5)

        assert circuit(process) == ["charge"]
        assert len(await it.effects(handler="cancel")) == 300
        assert process.worker._intake._paused == {("Placed", 0)}


@virtual
async def test_one_event_at_a_time_tries_and_the_waits_grow() -> None:
    """Rule 22: "one event at a time probes"."""
    api = Api(takes=0.1)
    async with bench(partitions=2) as it:
        process = await it.start(charging(api), limits=LIMITS)
        api.is_away = True
        await it.emit(*orders(200))
        await it.until(lambda: circuit(process))
        await it.pass_time(0.2)  # those that ran when it opened
        api.calls.clear()
        api.most_at_once = 0
        await it.pass_time(200)

        waits = [later - earlier for earlier, later in pairwise(api.calls)]
        assert api.most_at_once == 1
        assert len(waits) in range(6, 12)
        assert all(later > earlier for earlier, later in pairwise(waits[:4]))
        assert max(waits) <= 30 * 1.25 + 0.2


@virtual
async def test_a_success_closes_it_and_all_go_on() -> None:
    """Rule 22."""
    api = Api()
    async with bench() as it:
        process = await it.start(charging(api), limits=LIMITS)
        api.is_away = True
        await it.emit(*orders(50))
        await it.until(lambda: circuit(process))
        api.is_away = False
        api.calls.clear()
        began = it.clock.monotonic()
        await it.until(lambda: not circuit(process))
        assert it.clock.monotonic() - began < timedelta(seconds=1.5)
        await it.pass_time(5)
        await it.settle()

        assert len(await it.effects()) == 50
        assert await it.parked() == 0


@pytest.mark.parametrize("fault", ["reject", "decode", "one key", "now and then"])
@virtual
async def test_what_is_the_fault_of_single_events_opens_no_circuit(fault: str) -> None:
    """Rule 22 is for a handler that fails, whatever the event."""

    @on("Placed", retry=Retry.never())
    async def charge(order: Placed, context: Context) -> None:
        if fault == "reject":
            raise Reject("not this one")
        if fault == "one key" or order.number % 2:
            raise ValueError("a bug for some events")
        context.write(WRITE, "charge", order.order)

    async with bench() as it:
        process = await it.start(charge, limits=Limits(failing_keys=5, concurrency=1, batch=1))
        events = orders(40, keys=1 if fault == "one key" else 40)
        records = [it.record(event) for event in events]
        if fault == "decode":
            records = [record._replace(value=b"{}") for record in records]
        await it.publish(*records)
        await it.settle()

        assert circuit(process) == []
        assert len(await it.dead_letters()) == (20 if fault == "now and then" else 40)


@pytest.mark.parametrize("inside", [False, True])
@virtual
async def test_failures_between_successes_open_no_circuit_although_none_is_committed_yet(
    inside: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Rule 22: many in a row, and a batch is not a row."""

    @on("Placed", retry=Retry.never())
    async def outside_of_it(order: Placed, context: Context) -> None:
        if order.number % 10 == 0:
            raise ValueError("a bug for some events")
        context.write(WRITE, "charge", order.order)

    @on("Placed", retry=Retry.never())
    async def inside_of_it(order: Placed, connection: Connection) -> None:
        if order.number % 10 == 0:
            raise ValueError("a bug for some events")
        await connection.execute(WRITE, "charge", order.order)

    async with bench() as it:
        with telling(caplog):
            await it.start(inside_of_it if inside else outside_of_it, limits=Limits(failing_keys=5))
            await it.emit(*orders(300))
            await it.settle()

        assert "in a row" not in caplog.text
        assert len(await it.dead_letters()) == 30
        assert len(await it.effects()) == 270


@virtual
async def test_retries_that_fail_again_open_no_circuit() -> None:
    """Rule 22 is for a handler that fails, whatever the event; what is tried again is a choice of the bad ones."""

    @on("Placed", retry=PATIENT)
    async def charge(order: Placed, context: Context) -> None:
        if order.number % 2:
            raise TimeoutError("the carrier hesitates over some parcels")
        context.write(WRITE, "charge", order.order)

    async with bench() as it:
        process = await it.start(charge, limits=Limits(failing_keys=5, concurrency=1, batch=1))
        await it.emit(*orders(40))
        await it.settle()
        await it.pass_time(1)  # now all that have failed are due at once, and nothing else is there

        assert process.outcomes()["retry"] >= 40
        assert circuit(process) == []
        await it.emit(*orders(1, number=100))
        await it.settle()
        assert len(await it.effects()) == 21


@virtual
async def test_followers_of_parked_keys_wait_in_their_lane_while_it_is_open() -> None:
    """Nothing is parked by a circuit, in no indirect way either; and the order of the keys is kept."""
    api = Api()
    async with bench() as it:
        process = await it.start(charging(api), limits=LIMITS)
        api.is_away = True
        await it.emit(*orders(400, keys=20))
        await it.until(lambda: circuit(process))
        await it.pass_time(0.5)  # those that ran, and those that were behind a failure before it opened
        parked, waiting = await it.parked(), len(process.told("waiting"))
        await it.pass_time(20)
        assert await it.parked() <= parked + 5
        assert len(process.told("waiting")) == waiting

        api.is_away = False
        await it.pass_time(100)
        await it.settle()

        by_key: dict[str, list[int]] = {}
        for effect in await it.effects():
            order, number, _ = effect.split("/")
            by_key.setdefault(order, []).append(int(number))
        assert sum(map(len, by_key.values())) == 400
        assert all(numbers == sorted(numbers) for numbers in by_key.values())


@virtual
async def test_when_all_that_there_is_is_parked_one_of_those_tries() -> None:
    """Otherwise nobody would ever know that it is well again."""
    api = Api()
    async with bench() as it:
        process = await it.start(charging(api), limits=LIMITS)
        api.is_away = True
        await it.emit(*orders(6))
        await it.until(lambda: circuit(process))
        await it.settle()
        assert await it.parked() == 6
        api.calls.clear()
        await it.pass_time(10)
        assert 2 <= len(api.calls) <= 4, "they are not resumed as if nothing were known"

        api.is_away = False
        await it.pass_time(60)
        await it.settle()

        assert circuit(process) == []
        assert len(await it.effects()) == 6


@virtual
async def test_when_all_that_was_read_is_given_up_the_next_record_tries() -> None:
    """The topics that pause are read again when there is nobody else to try."""
    api = Api()
    async with bench() as it:
        process = await it.start(charging(api, retry=Retry.never()), limits=LIMITS)
        api.is_away = True
        await it.emit(*orders(5))
        await it.until(lambda: circuit(process))
        await it.settle()
        assert len(await it.dead_letters()) == 5

        api.is_away = False
        await it.pass_time(5)
        await it.emit(*orders(1, number=100))
        await it.pass_time(5)
        await it.settle()

        assert circuit(process) == []
        assert await it.effects() == ["order-0/100/1"]


@virtual
async def test_retries_of_other_handlers_are_not_held_up() -> None:
    """Parked events that wait for a circuit take no place from others."""
    api = Api()
    flaky: set[str] = set()

    @on("Cancelled", retry=PATIENT)
    async def cancel(order: Cancelled, context: Context) -> None:
        if order.order not in flaky:
            flaky.add(order.order)
            raise ValueError("the first time")
        context.write(WRITE, "cancel", order.order)

    async with bench() as it:
        limits = Limits(failing_keys=5, concurrency=4, resumed=3)
        process = await it.start(charging(api), cancel, limits=limits)
        api.is_away = True
        await it.emit(*orders(20))
        await it.until(lambda: circuit(process))
        await it.emit(*[Cancelled(order=f"order-{number}") for number in range(4)])
        await it.pass_time(20)

        assert circuit(process) == ["charge"]
        assert len(await it.effects(handler="cancel")) == 4


@virtual
async def test_a_try_that_is_taken_away_is_followed_by_another_one() -> None:
    """A rebalance must not leave a circuit open for ever."""
    api = Api()
    async with bench(partitions=2) as it:
        process = await it.start(charging(api), limits=LIMITS)
        api.is_away = True
        await it.emit(*orders(60))
        await it.until(lambda: circuit(process))
        await it.pass_time(0.1)
        api.calls.clear()
        api.takes = 20
        await it.until(lambda: api.calls)
        other = await it.start(charging(Api()), limits=LIMITS)
        await it.pass_time(1)
        api.is_away, api.takes = False, 0.001
        await it.pass_time(60)
        await it.settle()

        assert circuit(process) == []
        assert len(set(await it.effects())) == len(await it.effects()) == 60
        assert circuit(other) == []


@virtual
async def test_it_is_told_once_when_it_opens_and_once_when_it_closes(caplog: pytest.LogCaptureFixture) -> None:
    """Rule 22: "Readiness, log and a metric name it"."""
    api = Api()
    async with bench() as it:
        process = await it.start(charging(api), limits=LIMITS)
        api.is_away = True
        with telling(caplog):
            await it.emit(*orders(30))
            await it.pass_time(10)
            (pressed,) = process.worker.pressed()
            readiness = await process.worker.readiness()
            api.is_away = False
            await it.pass_time(20)
            await it.settle()

        (opened,) = told(caplog, "rests")
        assert "charge has failed for 5 keys in a row" in opened
        assert "ConnectionError: the card company does not answer" in opened
        assert opened.startswith(__file__)
        assert len(told(caplog, "charge succeeds again")) == 1
        assert (pressed.kind, pressed.name, set(pressed.topics)) == ("circuit", "charge", {"Placed"})
        assert readiness.ready
        assert readiness.limited == ("charge rests: ConnectionError: the card company does not answer",)
        assert (await process.worker.readiness()).limited == ()


@virtual
async def test_a_stop_does_not_wait_for_a_circuit() -> None:
    """What waits is read again by whoever comes next."""
    api = Api()
    async with bench() as it:
        process = await it.start(charging(api), limits=LIMITS)
        api.is_away = True
        await it.emit(*orders(30))
        await it.until(lambda: circuit(process))
        await it.settle()
        began = it.clock.monotonic()
        assert await process.stop()
        assert it.clock.monotonic() - began < timedelta(seconds=1)

        api.is_away = False
        await it.start(charging(api), limits=LIMITS)
        await it.pass_time(5)
        await it.settle()

        assert len(set(await it.effects())) == len(await it.effects()) == 30
