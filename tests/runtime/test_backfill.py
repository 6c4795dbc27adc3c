"""`backfill`: a handler is given what its topics held before it began to read them (rule 12)."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Collection
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest

from microflow import backfill as backfilling
from microflow.backfill import Backfill, Done, Plan, plan_backfill
from microflow.context import Context
from microflow.dead_letter_copies import REDRIVE_FOR
from microflow.errors import MicroflowError, StoreConflict, TargetError
from microflow.handler_changes import retire_handler
from microflow.handlers import on
from microflow.log_replay import Stretch
from microflow.ports import Record, Store, TopicPartition
from microflow.retries import Retry
from tests.runtime.bench import WRITE, Bench, Gate, bench
from tests.runtime.disturbed import DisturbedStore, Moments
from tests.runtime.events import Cancelled, Placed
from tests.runtime.virtual_loop import virtual

FIRST = TopicPartition("Placed", 0)
SLOWLY = Retry(attempts=3, first_delay=timedelta(seconds=60), jitter=0)


@on("Placed")
async def accept(order: Placed, context: Context) -> None:
    context.write(WRITE, "accept", f"{order.order}{order.number}")


@on("Placed")
async def notify(order: Placed, context: Context) -> None:
    context.write(WRITE, "notify", f"{order.order}{order.number}")


def placed(*names: str) -> list[Placed]:
    """`a1` is the first event of order a."""
    return [Placed(order=name[0], number=int(name[1:])) for name in names]


async def plan(
    it: Bench, handler: str = "notify", *, since: datetime | None = None, written: Collection[str] = ()
) -> Plan:
    return await plan_backfill(
        "shop", handler, await it.store(), it.log, since=since, written=written, now=it.clock.now()
    )


async def backfill(
    it: Bench,
    *,
    planned: Plan | None = None,
    since: datetime | None = None,
    room: int = 1000,
    in_order: bool = False,
    waits: Callable[[int], None] = lambda _: None,
    store: Store | None = None,
) -> Done:
    """Carry a backfill out, beside whatever else goes on."""
    carried_out = Backfill(
        planned or await plan(it, since=since),
        store or await it.another_store(),
        it.log,
        clock=it.clock,
        room=room,
        in_order=in_order,
        again="AGAIN",
        advanced=lambda _: None,
        waits=waits,
    )
    await carried_out.run()
    return carried_out.done


async def handled_before(it: Bench, *names: str) -> None:
    """A service without `notify` has handled these, and has stopped."""
    first = await it.start(accept)
    await it.emit(*placed(*names))
    await it.settle()
    await first.stop()


async def registered(it: Bench, *handlers: Callable[..., Any]) -> None:
    """A process has had these handlers, for a moment."""
    process = await it.start(*handlers)
    await it.settle()
    await process.stop()


async def read_from(it: Bench, offset: int, handler: str = "notify") -> None:
    """As if a handler had been registered when the service had got to an offset."""
    async with (await it.store())._database.writing() as connection:
        connection.execute(
            "update microflow_triggers set since = ? "
            "where handler = (select id from microflow_handlers where name = ?)",
            (json.dumps({"0": offset}), handler),
        )


# ── what is handed over ───────────────────────────────────────────────────────────────────────────────────────────


@virtual
async def test_a_new_handler_is_given_what_was_there_before_it_in_order_and_only_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Rule 12: its replay, while the service runs; the other handlers see nothing of it, and again gives nothing."""
    monkeypatch.setattr(backfilling, "AT_ONCE", 2)
    async with bench(partitions=3) as it:
        before = [f"{order}{number}" for number in range(1, 5) for order in "abc"]
        await handled_before(it, *before)
        await it.start(accept, notify)
        await it.settle()

        done = await backfill(it)
        await it.settle()

        assert (done.read, done.handed_over, done.known) == (12, 12, 0)
        for order in "abc":
            notified = [each for each in await it.effects(handler="notify") if each[0] == order]
            assert notified == [f"{order}{number}" for number in range(1, 5)]
        assert sorted(await it.effects(handler="accept")) == sorted(before)

        again = await backfill(it)
        await it.settle()
        assert (again.read, again.handed_over, again.known) == (12, 0, 12)
        assert len(await it.effects(handler="notify")) == 12


@virtual
async def test_what_was_handed_over_while_nobody_ran_the_service_is_handled_before_what_is_new() -> None:
    """Rule 7: nothing newer was read by then, so the order of keys is kept, and that is known."""
    async with bench() as it:
        await handled_before(it, "a1", "b1", "a2")
        await registered(it, accept, notify)

        assert (await plan(it)).disorder == ""
        assert (await backfill(it, in_order=True)).handed_over == 3
        await it.emit(*placed("a3"))
        await it.start(accept, notify)
        await it.settle()

        notified = await it.effects(handler="notify")
        assert [each for each in notified if each[0] == "a"] == ["a1", "a2", "a3"]
        assert "b1" in notified


@virtual
async def test_an_event_that_the_handler_had_is_known_whatever_its_record_says() -> None:
    """Rule 9: the claim is that of the intake, also for records that bring no id, or nothing but their value."""
    async with bench() as it:
        await it.start(notify)
        await it.emit(*placed("a1"))
        await it.publish(Record("Placed", 0, b"b", b'{"order": "b", "number": 1}'))
        await it.publish(Record("Placed", 0, b"c", b'{"order": "c", "number": 1}', (("ce_type", b"Placed"),)))
        await it.settle()
        await read_from(it, 3)

        done = await backfill(it)
        await it.settle()

        assert (done.handed_over, done.known) == (0, 3)
        assert await it.effects() == ["a1", "b1", "c1"]


@virtual
async def test_what_is_not_the_handlers_is_left_out() -> None:
    """Other types, records that cannot be read, those that were sent again for another handler, and what it reads."""

    @on("Cancelled", topic="Placed")
    async def cancel(order: Cancelled, context: Context) -> None:
        context.write(WRITE, "cancel", order.order)

    async with bench() as it:
        first = await it.start(accept)
        await it.emit(*placed("a1"))
        await it.publish(it.record(Cancelled(order="a"), topic="Placed"))
        await it.publish(it.record(*placed("a2"))._replace(headers=(("ce_id", b"\xff"),)))
        for_others = [(REDRIVE_FOR, each) for each in (b"shop/accept", b"bank/notify", b"shop/notify")]
        for number, header in enumerate(for_others, 3):
            record = it.record(*placed(f"a{number}"))
            await it.publish(record._replace(headers=(*record.headers, header)))
        await it.settle()
        await first.stop()
        await registered(it, accept, notify, cancel)
        await it.emit(*placed("a6"))

        done = await backfill(it)
        await it.start(accept, notify, cancel)
        await it.settle()

        assert (done.read, done.handed_over, done.unreadable) == (6, 2, 1)
        assert await it.effects(handler="notify") == ["a1", "a5", "a6"]
        assert await it.effects(handler="cancel") == []


@virtual
async def test_only_what_is_not_older_is_handed_over_if_that_is_asked_for() -> None:
    async with bench() as it:
        first = await it.start(accept)
        await it.emit(*placed("a1", "a2"))
        await it.pass_time(60)
        since = it.clock.now()
        await it.emit(*placed("a3"))
        await it.settle()
        await first.stop()
        await registered(it, accept, notify)

        assert dict((await plan(it, since=since)).records) == {"Placed": 1}
        assert (await backfill(it, since=since)).handed_over == 1
        assert (await backfill(it)).handed_over == 2


@virtual
async def test_two_backfills_at_once_hand_over_each_event_once() -> None:
    """Rule 9: the claim decides, in the transaction that parks."""
    async with bench() as it:
        await handled_before(it, "a1", "b1", "a2")
        await it.start(accept, notify)
        moments = Moments()

        async def another() -> None:
            await backfill(it)
            await it.settle()
            assert len(await it.effects(handler="notify")) == 3

        moments.plan("begin", another)
        store: Any = DisturbedStore(await it.another_store(), moments)
        done = await backfill(it, store=store)
        await it.settle()

        assert (done.handed_over, done.known) == (0, 3)
        assert len(await it.effects(handler="notify")) == 3


@virtual
async def test_an_error_of_the_database_that_passes_is_tried_again() -> None:
    async with bench() as it:
        await handled_before(it, "a1", "a2")
        await registered(it, accept, notify)
        moments = Moments()
        moments.plan("commit", StoreConflict("a deadlock"))
        moments.plan("committed", StoreConflict("the answer was lost"))
        store: Any = DisturbedStore(await it.another_store(), moments)

        await backfill(it, store=store)
        await it.start(accept, notify)
        await it.settle()

        assert await it.effects(handler="notify") == ["a1", "a2"]


# ── who waits for it ──────────────────────────────────────────────────────────────────────────────────────────────


@virtual
async def test_later_events_of_a_key_wait_for_the_backfilled_handler_only() -> None:
    """Rule 12, with rule 7: also behind what waits behind it, and while one of them fails and is tried again."""

    @on("Placed", retry=SLOWLY)
    async def notify(order: Placed, context: Context) -> None:
        if order.number == 1 and context.attempt == 1:
            raise ValueError("not yet")
        context.write(WRITE, "notify", f"{order.order}{order.number}")

    async with bench() as it:
        await handled_before(it, "a1", "a2")
        await it.start(accept, notify)
        await backfill(it)
        await it.settle()
        await it.emit(*placed("a3"))
        await it.settle()
        await it.emit(*placed("a4"))
        await it.settle()

        assert await it.effects() == ["a1", "a2", "a3", "a4"]
        assert await it.parked() == 4
        await it.pass_time(61)
        await it.settle()
        assert await it.effects(handler="notify") == ["a1", "a2", "a3", "a4"]


@virtual
async def test_what_fails_behind_a_backfilled_event_keeps_the_other_handlers_going() -> None:
    """Rule 12: what was parked for its handler alone stays so when it is tried again."""

    @on("Placed", retry=SLOWLY)
    async def notify(order: Placed, context: Context) -> None:
        if context.attempt == 1:
            raise ValueError("not yet")
        context.write(WRITE, "notify", f"{order.order}{order.number}")

    async with bench() as it:
        await handled_before(it, "a1")
        await it.start(accept, notify)
        await backfill(it)
        await it.settle()
        await it.emit(*placed("a2"))
        await it.settle()
        await it.pass_time(61)  # a1 is done, and a2 fails for the first time
        await it.emit(*placed("a3"))
        await it.settle()

        assert await it.effects(handler="accept") == ["a1", "a2", "a3"]
        await it.pass_time(200)
        await it.settle()
        assert await it.effects(handler="notify") == ["a1", "a2", "a3"]


# ── how much may wait ─────────────────────────────────────────────────────────────────────────────────────────────


@virtual
async def test_with_nobody_to_work_them_off_it_stops_where_its_room_ends_and_goes_on_when_told_again() -> None:
    """Rule 22: what may be parked for a handler is not used up."""
    async with bench() as it:
        names = [f"a{number}" for number in range(1, 8)]
        await handled_before(it, *names)
        await registered(it, accept, notify)

        with pytest.raises(MicroflowError) as stopped:
            await backfill(it, room=3, in_order=True)

        assert await it.parked() == 3
        assert str(stopped.value).splitlines() == [
            "At least 3 events wait for notify, and no process of shop works them off.",
            "  3 events were handed over. A backfill uses half of what may be parked for a handler, here 3 events "
            "(MICROFLOW_PARKED_PER_HANDLER).",
            "  Start shop, and go on:  AGAIN --out-of-order",
        ]
        await it.start(accept, notify)
        await it.settle()
        assert (await backfill(it, room=3)).handed_over == 4
        await it.settle()
        assert await it.effects(handler="notify") == names


@virtual
async def test_what_it_has_handed_over_before_needs_no_room() -> None:
    async with bench() as it:
        await handled_before(it, "a1", "a2", "a3")
        await registered(it, accept, notify)

        assert (await backfill(it, room=3)).handed_over == 3
        assert (await backfill(it, room=3)).known == 3


@virtual
async def test_it_waits_while_the_service_works_off_what_was_handed_over() -> None:
    """Rule 22."""
    gate = Gate()
    most: list[int] = []
    told: list[int] = []

    @on("Placed")
    async def notify(order: Placed, context: Context) -> None:
        await gate.pass_through("")
        most.append(await it.parked())
        context.write(WRITE, "notify", f"{order.order}{order.number}")

    async with bench() as it:
        names = [f"{order}1" for order in "abcdefg"]
        await handled_before(it, *names)
        await it.start(accept, notify)
        running = asyncio.ensure_future(backfill(it, room=3, waits=told.append))
        await it.until(lambda: told)
        assert await it.parked() == 3
        gate.open()
        done = await running
        await it.settle()

        assert (done.handed_over, max(most)) == (7, 3)
        assert told == [3]
        assert sorted(await it.effects(handler="notify")) == names


# ── whether the order is kept ─────────────────────────────────────────────────────────────────────────────────────


@virtual
async def test_a_handler_at_work_or_one_that_has_read_newer_events_may_get_them_out_of_order() -> None:
    """Rule 7: the command says so."""
    async with bench() as it:
        await handled_before(it, "a1")
        process = await it.start(accept, notify)
        assert (await plan(it)).disorder == "notify is at work, and handles newer events of a key before older ones"
        await process.stop()
        assert (await plan(it)).disorder == ""

        process = await it.start(accept, notify)
        await it.emit(*placed("a2"))
        await it.settle()
        await process.stop()
        assert (await plan(it)).disorder == "notify may have handled newer events of a key already"
        assert await (await it.store()).inbox.purge(completed_before=it.clock.now() + SLOWLY.first_delay, limit=9) == 3
        assert (await plan(it)).disorder == "notify may have handled newer events of a key already"


@virtual
async def test_a_claim_that_is_ahead_of_the_watermark_tells_of_newer_events_too() -> None:
    """Rule 13: a watermark is the lowest offset that is not committed."""
    gate = Gate()

    @on("Placed")
    async def accept(order: Placed, context: Context) -> None:
        if order.order == "slow":
            await gate.pass_through("")
        context.write(WRITE, "accept", f"{order.order}{order.number}")

    async with bench() as it:
        await handled_before(it, "a1")
        process = await it.start(accept, notify)
        await it.emit(Placed(order="slow"), *placed("a2"))
        await it.until(lambda: len(process.told("done")) == 2)
        await process.crash()
        await it.pass_time(60)

        assert dict(await it.watermarks()) == {("Placed", 0): 1}
        assert (await plan(it)).disorder == "notify may have handled newer events of a key already"


@virtual
async def test_a_process_that_begins_meanwhile_ends_a_backfill_that_is_to_keep_the_order(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(backfilling, "AT_ONCE", 1)
    async with bench() as it:
        await handled_before(it, "a1", "a2")
        await registered(it, accept, notify)
        moments = Moments()

        async def begin() -> None:
            await it.start(accept, notify)

        moments.plan("committed", begin)
        store: Any = DisturbedStore(await it.another_store(), moments)
        with pytest.raises(MicroflowError, match="A process has begun to run notify meanwhile") as stopped:
            await backfill(it, in_order=True, store=store)

        assert stopped.value.why == "1 event was handed over."
        assert (await backfill(it)).handed_over == 1
        await it.settle()
        assert await it.effects(handler="notify") == ["a1", "a2"]


# ── what cannot be read ───────────────────────────────────────────────────────────────────────────────────────────


@virtual
async def test_what_the_log_does_not_have_any_more_is_told() -> None:
    async with bench() as it:
        await handled_before(it, "a1", "a2", "a3")
        await registered(it, accept, notify)
        async with it.log._log.writing() as connection:
            connection.execute("delete from microflow_log_records where id % 1099511627776 < 2")
            connection.execute("update microflow_log_partitions set beginning = 2")

        planned = await plan(it)

        assert dict(planned.records) == {"Placed": 1}
        assert planned.notes == ("the log has the first 2 records of Placed no more: its retention is over",)
        assert (await backfill(it)).handed_over == 1


@virtual
async def test_a_log_that_gives_nothing_and_does_not_say_why_is_an_error_and_not_the_end() -> None:
    async with bench() as it:
        await handled_before(it, "a1")
        await registered(it, accept, notify)
        planned = replace(await plan(it), stretches={FIRST: Stretch(0, 5)})

        with pytest.raises(MicroflowError) as error:
            await backfill(it, planned=planned)

        assert str(error.value).splitlines() == [
            "The log gives nothing of Placed[0] from 1 to 4, and does not say why.",
            "  1 event was handed over. What is handed over is not lost, and not repeated.",
            "  To go on:  AGAIN",
        ]


@virtual
async def test_what_the_retention_takes_away_meanwhile_is_passed_over() -> None:
    async with bench() as it:
        await handled_before(it, "a1")
        await registered(it, accept, notify)
        planned = replace(await plan(it), stretches={FIRST: Stretch(0, 5)})
        async with it.log._log.writing() as connection:
            connection.execute("update microflow_log_partitions set beginning = 5, ending = 5")

        assert (await backfill(it, planned=planned)).handed_over <= 1


@virtual
async def test_a_topic_that_was_deleted_and_created_again_is_read_by_the_service_itself() -> None:
    """Rule 9's incarnation: its records are others than those before the handler."""
    async with bench() as it:
        await handled_before(it, "a1", "a2")
        await registered(it, accept, notify)
        await it.create_again("Placed")
        await it.emit(*placed("b1", "b2", "b3"))

        planned = await plan(it)
        assert not planned.stretches
        assert planned.notes[0].startswith("Placed was deleted and created again")

        await it.start(accept, notify)
        await it.settle()
        assert await it.effects(handler="notify") == ["b1", "b2", "b3"]
        assert not (await plan(it)).stretches


@virtual
async def test_a_handler_that_was_there_from_the_beginning_has_nothing_to_be_given() -> None:
    async with bench() as it:
        await it.start(accept)
        await it.emit(*placed("a1"))
        await it.settle()

        assert not (await plan(it, "accept")).stretches


@virtual
async def test_a_handler_that_is_not_registered_is_told_apart_from_one_that_is_misspelt() -> None:
    async with bench() as it:
        await handled_before(it, "a1")
        await registered(it, accept, notify)

        with pytest.raises(TargetError, match="Did you mean notify"):
            await plan(it, "notfiy")
        with pytest.raises(TargetError, match="audit of shop has not run yet"):
            await plan(it, "audit", written={"accept", "audit"})
        await (await it.store()).handlers.rename("notify", "tell", now=it.clock.now())
        with pytest.raises(TargetError, match="The handler notify of shop is called tell now"):
            await plan(it)


@virtual
async def test_nothing_is_handed_over_for_a_handler_that_is_retired_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rule 12: the fence checks the registry."""
    monkeypatch.setattr(backfilling, "AT_ONCE", 1)
    async with bench() as it:
        await handled_before(it, "a1", "a2")
        await registered(it, accept, notify)
        moments = Moments()

        async def retire() -> None:
            await retire_handler(await it.store(), "notify", now=it.clock.now())

        moments.plan("begin", retire)
        store: Any = DisturbedStore(await it.another_store(), moments)
        with pytest.raises(TargetError, match="shop has no handler notify"):
            await backfill(it, store=store)

        assert await it.parked() == 0
