"""Parking: a failed event comes back when due, and what of its key has to wait for it does, no more and no less."""

from __future__ import annotations

from collections import Counter
from datetime import timedelta
from itertools import pairwise

from microflow.context import Context
from microflow.errors import Reject
from microflow.handlers import on
from microflow.limits import Limits
from microflow.ports import Record
from microflow.retries import Order, Retry
from tests.runtime.bench import WRITE, Bench, bench
from tests.runtime.events import Cancelled, Placed
from tests.runtime.virtual_loop import virtual

SOON = Retry(attempts=3, first_delay=timedelta(seconds=1), jitter=0)


def numbered(order: str, *numbers: int) -> list[Placed]:
    return [Placed(order=order, number=number) for number in numbers]


@virtual
async def test_later_events_of_a_key_wait_for_a_parked_one_and_other_keys_do_not() -> None:
    """Rule 7."""

    @on("Placed", retry=SOON)
    async def accept(order: Placed, context: Context) -> None:
        if order.number == 1 and context.attempt < 3:
            raise ValueError("flaky")
        context.write(WRITE, "accept", f"{order.order}{order.number}")

    async with bench() as it:
        process = await it.start(accept)
        await it.emit(*numbered("a", 0, 1, 2, 3), *numbered("b", 2))
        await it.settle()
        assert sorted(await it.effects()) == ["a0", "b2"]
        assert await it.parked() == 3
        await it.pass_time(0.5)
        await it.emit(*numbered("a", 4))
        await it.settle()
        assert await it.parked() == 4

        await it.pass_time(5)
        await it.settle()

        assert [what for what in await it.effects() if what[0] == "a"] == ["a0", "a1", "a2", "a3", "a4"]
        assert await it.parked() == 0
        assert process.outcomes()["retry"] == 2
        assert {report.attempt for report in process.told("done") if report.record.offset != 1} == {1}


@virtual
async def test_a_retry_is_due_at_its_instant_and_not_before() -> None:
    """Rule 7: "parked waiting for its next attempt"."""
    at: list[float] = []

    @on("Placed", retry=Retry(attempts=4, first_delay=timedelta(seconds=10), backoff=3, jitter=0))
    async def accept(order: Placed) -> None:
        at.append(round(it.clock.monotonic().total_seconds(), 1))
        raise ValueError("never")

    async with bench() as it:
        await it.start(accept)
        await it.emit(Placed(order="a"))
        await it.pass_time(150)
        await it.settle()

        assert [round(later - earlier) for earlier, later in pairwise(at)] == [10, 30, 90]
        (letter,) = await it.dead_letters()
        assert (letter.reason, letter.attempts, letter.error) == ("exhausted", 4, "ValueError: never")
        assert letter.failed_at - letter.first_failed_at >= timedelta(seconds=130)


@virtual
async def test_the_other_handlers_of_a_parked_event_still_run() -> None:
    """Rule 7: "while an event is parked for one handler, its other handlers still run"."""

    @on("Placed", retry=SOON)
    async def fails(order: Placed, context: Context) -> None:
        if context.attempt == 1 and order.number == 1:
            raise ValueError("flaky")
        context.write(WRITE, "fails", str(order.number))

    @on("Placed")
    async def works(order: Placed, context: Context) -> None:
        context.write(WRITE, "works", str(order.number))

    async with bench() as it:
        await it.start(fails, works)
        await it.emit(*numbered("a", 1, 2))
        await it.settle()

        assert await it.effects(handler="works") == ["1"]
        assert await it.effects(handler="fails") == []
        await it.pass_time(2)
        await it.settle()
        assert await it.effects(handler="works") == ["1", "2"]
        assert await it.effects(handler="fails") == ["1", "2"]


async def effects_while_parked(it: Bench, order: Order) -> tuple[list[str], list[str], list[str], list[str]]:
    @on("Placed", retry=SOON, order=order)
    async def fails(order: Placed, context: Context) -> None:
        if context.attempt == 1 and order.number == 1:
            raise ValueError("flaky")
        context.write(WRITE, "fails", str(order.number))

    @on("Placed")
    async def works(order: Placed, context: Context) -> None:
        context.write(WRITE, "works", str(order.number))

    await it.start(fails, works)
    await it.emit(*numbered("a", 1))
    await it.settle()
    await it.emit(*numbered("a", 2, 3))
    await it.settle()
    meanwhile = await it.effects(handler="fails"), await it.effects(handler="works")
    await it.pass_time(3)
    await it.settle()
    assert await it.parked() == 0
    return *meanwhile, await it.effects(handler="fails"), await it.effects(handler="works")


@virtual
async def test_with_the_order_of_the_key_everything_waits() -> None:
    """Rule 7."""
    async with bench() as it:
        assert await effects_while_parked(it, "key") == ([], ["1"], ["1", "2", "3"], ["1", "2", "3"])


@virtual
async def test_with_the_order_of_the_handler_only_its_own_events_wait() -> None:
    """Rule 7: "`order="handler"` narrows this to the handler"."""
    async with bench() as it:
        assert await effects_while_parked(it, "handler") == ([], ["1", "2", "3"], ["1", "2", "3"], ["1", "2", "3"])


@virtual
async def test_without_order_nothing_waits() -> None:
    """Rule 7: "`order="none"` lifts it"."""
    async with bench() as it:
        every = ["1", "2", "3"]
        assert await effects_while_parked(it, "none") == (["2", "3"], every, ["2", "3", "1"], every)


@virtual
async def test_after_a_dead_letter_the_followers_go_on() -> None:
    """Rule 7."""

    @on("Placed", retry=SOON)
    async def accept(order: Placed, context: Context) -> None:
        if order.number == 1:
            raise Reject("not this one")
        if order.number == 3:
            raise ValueError("never")
        context.write(WRITE, "accept", str(order.number))

    async with bench() as it:
        await it.start(accept)
        await it.emit(*numbered("a", 1, 2, 3, 4))
        await it.settle()
        assert await it.effects() == ["2"]
        await it.pass_time(5)
        await it.settle()

        assert await it.effects() == ["2", "4"]
        assert [letter.reason for letter in await it.dead_letters()] == ["rejected", "exhausted"]


@virtual
async def test_a_handler_that_halts_keeps_its_key_closed_until_the_dead_letter_is_redriven() -> None:
    """Rule 7: "unless the handler says `halt`". The redrive is somebody else's, who wakes nobody."""
    fixed = False

    @on("Placed", retry=Retry.never(), halt=True)
    async def accept(order: Placed, context: Context) -> None:
        if order.number == 1 and not fixed:
            raise ValueError("not yet")
        context.write(WRITE, "accept", f"{order.order}{order.number}")

    async with bench() as it:
        await it.start(accept)
        await it.emit(*numbered("a", 1, 2, 3), *numbered("b", 2))
        await it.pass_time(3600)
        assert await it.effects() == ["b2"]
        fixed = True
        letters = await it.dead_letters()
        assert len(letters) == 1
        store = await it.store()
        assert await store.dead_letters.redrive([letters[0].id], now=it.clock.now()) == {letters[0].id}
        await it.pass_time(5)
        await it.settle()

        assert await it.effects() == ["b2", "a1", "a2", "a3"]
        assert [letter.state for letter in await it.dead_letters()] == ["done"]


@virtual
async def test_a_redriven_event_takes_effect_once_with_its_own_bytes() -> None:
    """Issue 3: "a poison event … redriven after a fix, it takes effect once"."""
    fixed = False

    @on("Placed", retry=Retry.never())
    async def accept(order: Placed, context: Context) -> None:
        if order.number == 7 and not fixed:
            raise ValueError("poison")
        context.write(WRITE, "accept", str(order.number))

    async with bench() as it:
        process = await it.start(accept)
        records = await it.emit(*[Placed(order=f"o-{number}", number=number) for number in range(1000)])
        await it.settle()
        assert len(await it.effects()) == 999
        (letter,) = await it.dead_letters()
        assert (letter.record.value, letter.record.headers) == (records[7].value, records[7].headers)

        fixed = True
        store = await it.store()
        await store.dead_letters.redrive([letter.id], now=it.clock.now())
        assert await store.dead_letters.redrive([letter.id], now=it.clock.now()) == frozenset()
        await it.pass_time(2)
        await it.settle()

        assert (await it.effects())[999:] == ["7"]
        assert process.told("done")[-1].attempt == 1


@virtual
async def test_events_without_a_key_have_no_order_and_block_nothing() -> None:
    """Rule 7."""

    @on("Placed", retry=SOON)
    async def accept(order: Placed, context: Context) -> None:
        if order.number == 1 and context.attempt == 1:
            raise ValueError("flaky")
        context.write(WRITE, "accept", str(order.number))

    @on("Placed")
    async def note(order: Placed, context: Context) -> None:
        context.write(WRITE, "note", str(order.number))

    async with bench() as it:
        await it.start(accept, note)
        records = [it.record(event) for event in numbered("a", 1, 2, 3)]
        await it.publish(*[Record(each.topic, 0, None, each.value, each.headers) for each in records])
        await it.settle()
        assert await it.effects(handler="accept") == ["2", "3"]
        assert sorted(await it.effects(handler="note")) == ["1", "2", "3"]
        await it.pass_time(2)
        await it.settle()

        assert await it.effects(handler="accept") == ["2", "3", "1"]


@virtual
async def test_parked_events_survive_a_crash_and_are_resumed_by_whoever_owns_the_key() -> None:
    """Rules 7 and 8."""

    @on("Placed", retry=SOON)
    async def accept(order: Placed, context: Context) -> None:
        if context.attempt == 1:
            raise ValueError("flaky")
        context.write(WRITE, "accept", str(order.number))

    async with bench() as it:
        first = await it.start(accept)
        await it.emit(*numbered("a", 1, 2))
        await it.settle()
        await first.crash()
        second = await it.start(accept)
        await it.pass_time(5)
        await it.settle()

        assert await it.effects() == ["1", "2"]
        assert [report.attempt for report in second.told("done")] == [2, 2]


@virtual
async def test_thousands_of_parked_events_are_resumed_a_few_at_a_time() -> None:
    """Bounded memory: "parked events in hand at once"."""

    @on("Placed", retry=Retry(attempts=2, first_delay=timedelta(seconds=60), jitter=0))
    async def accept(order: Placed, context: Context) -> None:
        if context.attempt == 1:
            raise ValueError("flaky")
        await it.clock.sleep(timedelta(seconds=0.05))

    async with bench() as it:
        process = await it.start(accept, limits=Limits(resumed=10, failing_keys=10_000))
        most = 0
        await it.emit(*[Placed(order=f"o-{number}") for number in range(500)])
        await it.settle()
        assert await it.parked() == 500
        while await it.parked():
            await it.pass_time(0.01 if it.clock.monotonic() > timedelta(seconds=60) else 1)
            most = max(most, len(process.worker._parking._in_hand))
        await it.settle()

        assert most == 10
        assert Counter(report.outcome for report in process.reports) == {"retry": 500, "done": 500}


@virtual
async def test_a_failure_of_one_type_does_not_hold_up_the_same_key_on_another_topic() -> None:
    """Rules 7 and 8: order is per (service, topic, key)."""

    @on("Placed", retry=SOON)
    async def accept(order: Placed) -> None:
        raise ValueError("flaky")

    @on("Cancelled")
    async def cancel(order: Cancelled, context: Context) -> None:
        context.write(WRITE, "cancel", order.order)

    async with bench() as it:
        await it.start(accept, cancel)
        await it.emit(Placed(order="a"), Cancelled(order="a"))
        await it.settle()

        assert await it.effects() == ["a"]
