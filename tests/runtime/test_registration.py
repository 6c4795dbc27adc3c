"""Registration: handlers come and go while old and new versions of a service run side by side (rule 12)."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from datetime import timedelta

import pytest

from microflow.context import Context
from microflow.errors import DefinitionError
from microflow.handlers import Trigger, on
from microflow.ports import Registry
from microflow.retries import Retry
from tests.runtime.bench import WRITE, Bench, Gate, bench
from tests.runtime.events import Cancelled, Placed
from tests.runtime.virtual_loop import virtual

LONG = timedelta(hours=1)
SLOWLY = Retry(attempts=3, first_delay=timedelta(seconds=60), jitter=0)
PLACED = Trigger("Placed", "Placed")


@on("Placed")
async def accept(order: Placed, context: Context) -> None:
    context.write(WRITE, "accept", f"{order.order}{order.number}")


@on("Placed")
async def notify(order: Placed, context: Context) -> None:
    context.write(WRITE, "notify", f"{order.order}{order.number}")


def placed(*names: str) -> list[Placed]:
    """`a1` is the first event of order a."""
    return [Placed(order=name[0], number=int(name[1:])) for name in names]


async def registry(it: Bench) -> Registry:
    return await (await it.store()).handlers.registry(now=it.clock.now())


async def register(it: Bench, handlers: Mapping[str, list[Trigger]], *, owner: str = "new") -> None:
    """What a process of another version does before it joins the group."""
    store = await it.store()
    now = it.clock.now()
    await store.handlers.register(handlers, owner=owner, now=now, until=now + LONG)


# ── added ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@virtual
async def test_events_for_a_handler_that_only_the_new_version_has_wait_until_it_takes_over_and_run_in_order() -> None:
    """Rule 12: "A process that meets an event for a registered handler that it does not have parks the raw record"."""
    async with bench() as it:
        old = await it.start(accept)
        await it.emit(*placed("a1", "b1"))
        await it.settle()

        await register(it, {"accept": [PLACED], "notify": [PLACED]})
        await it.emit(*placed("a2", "b2", "a3", "c1", "a4"))
        await it.settle()
        accepted = ["a1", "a2", "a3", "a4", "b1", "b2", "c1"]
        assert sorted(await it.effects(handler="accept")) == accepted
        assert await it.parked() == 5
        assert await it.effects(handler="notify") == []

        assert await old.stop()
        await it.start(accept, notify)
        await it.emit(*placed("a5"))
        await it.settle()

        notified = await it.effects(handler="notify")
        assert [each for each in notified if each[0] == "a"] == ["a2", "a3", "a4", "a5"]
        assert sorted(notified) == ["a2", "a3", "a4", "a5", "b2", "c1"]
        assert sorted(await it.effects(handler="accept")) == sorted([*accepted, "a5"])
        assert await it.parked() == 0


@virtual
async def test_a_new_handler_on_a_topic_already_read_sees_new_events_only() -> None:
    """Rule 12: "A new handler on a topic already read sees new events"; what it reads from is remembered."""
    async with bench() as it:
        first = await it.start(accept)
        await it.emit(*placed("a1", "a2"))
        await it.settle()
        await first.stop()

        await it.start(accept, notify)
        await it.emit(*placed("a3"))
        await it.settle()

        assert await it.effects(handler="notify") == ["a3"]
        assert await it.effects(handler="accept") == ["a1", "a2", "a3"]
        handlers = (await registry(it)).handlers
        assert (handlers["accept"].triggers, handlers["notify"].triggers) == ({PLACED: {}}, {PLACED: {0: 2}})


@virtual
async def test_a_handler_of_a_fresh_service_or_of_a_topic_never_read_sees_everything() -> None:
    """Rule 12: "A group without stored offsets starts at the earliest record"."""

    @on("Cancelled")
    async def cancel(order: Cancelled, context: Context) -> None:
        context.write(WRITE, "cancel", order.order)

    async with bench() as it:
        await it.log.topics.ensure(["Placed", "Cancelled"])
        await it.emit(*placed("a1"), Cancelled(order="a"))
        first = await it.start(accept)
        await it.settle()
        await first.stop()
        await it.start(accept, cancel)
        await it.settle()

        assert await it.effects() == ["a1", "a"]


@virtual
async def test_what_was_under_way_when_a_handler_was_registered_is_not_committed_without_it() -> None:
    """Rule 12: "a process that knows an older one reloads it before it commits". What was read and skipped, or was
    committed before an earlier event of the partition, is seen by the new handler as well; nothing runs twice."""
    gate, executed = Gate(), []

    @on("Placed")
    async def slow(order: Placed, context: Context) -> None:
        executed.append(f"{order.order}{order.number}")
        if order.order == "a":
            await gate.pass_through(order.order)
        context.write(WRITE, "slow", f"{order.order}{order.number}")

    @on("Cancelled", topic="Placed")
    async def cancel(order: Cancelled, context: Context) -> None:
        context.write(WRITE, "cancel", order.order)

    @on("Placed")
    async def audit(order: Placed, context: Context) -> None:
        context.write(WRITE, "audit", f"{order.order}{order.number}")

    async with bench() as it:
        old = await it.start(slow)
        await it.emit(*placed("z0"))
        await it.settle()
        await it.emit(*placed("a1", "b1"))
        await it.publish(it.record(Cancelled(order="c"), topic="Placed"))
        await it.emit(*placed("a2"))
        await it.until(lambda: len(old.told("done")) == 2 and gate.waiting)
        version = (await registry(it)).version

        await register(it, {"slow": [PLACED], "cancel": [Trigger("Cancelled", "Placed")], "audit": [PLACED]})
        await it.pass_time(1)
        gate.open()
        await it.settle()

        assert executed == ["z0", "a1", "b1", "a2"]
        assert await it.effects() == ["z0", "b1", "a1", "a2"]
        assert await it.watermarks() == {("Placed", 0): 5}
        store = await it.store()
        waiting = [*await store.parking.waiting("audit", limit=9), *await store.parking.waiting("cancel", limit=9)]
        assert sorted((row.claim.handler, row.record.offset) for row in waiting) == [
            *[("audit", offset) for offset in (1, 2, 4)],
            ("cancel", 3),
        ]
        assert old.worker._registration.version == (await registry(it)).version > version

        await store.handlers.leave(owner="new")
        await old.stop()
        await it.start(slow, cancel, audit)
        await it.settle()
        assert (await it.effects())[4:] == ["a1", "b1", "c", "a2"]
        assert len(executed) == 4


@virtual
async def test_watermarks_that_move_by_skipping_wait_for_the_new_version_too() -> None:
    """Rule 12, with rule 13's small transaction: what is skipped here may be somebody's now."""
    async with bench() as it:
        await it.start(accept)
        await it.settle()
        await register(it, {"accept": [PLACED], "cancel": [Trigger("Cancelled", "Placed")]})
        await it.publish(it.record(Cancelled(order="c"), topic="Placed"))
        await it.settle()
        await it.pass_time(1)

        store = await it.store()
        assert [row.record.offset for row in await store.parking.waiting("cancel", limit=9)] == [0]
        assert await it.watermarks() == {("Placed", 0): 1}


@virtual
async def test_later_events_of_a_key_wait_for_the_missing_handler_only() -> None:
    """Rule 12: "later events of the key then wait for this handler only"."""
    async with bench() as it:
        await it.start(accept)
        await register(it, {"accept": [PLACED], "notify": [PLACED]})
        await it.emit(*placed("a1", "a2", "a3"))
        await it.settle()

        assert await it.effects() == ["a1", "a2", "a3"]
        assert await it.parked() == 3


@virtual
async def test_what_was_parked_for_the_missing_handler_keeps_the_others_going_when_that_one_comes_and_fails() -> None:
    """Rule 12: "… wait for this handler only", and so does what waits behind it."""

    @on("Placed", retry=SLOWLY)
    async def notify(order: Placed, context: Context) -> None:
        if order.number == 1 and context.attempt == 1:
            raise ValueError("not yet")
        context.write(WRITE, "notify", f"{order.order}{order.number}")

    async with bench() as it:
        old = await it.start(accept)
        await register(it, {"accept": [PLACED], "notify": [PLACED]})
        await it.emit(*placed("a1"))
        await it.settle()
        await old.stop()
        await it.start(accept, notify)
        for name in ("a2", "a3"):
            await it.emit(*placed(name))
            await it.settle()

        assert await it.effects() == ["a1", "a2", "a3"]
        await it.pass_time(61)
        await it.settle()
        assert await it.effects(handler="notify") == ["a1", "a2", "a3"]


@virtual
async def test_while_an_event_is_parked_for_a_retry_those_for_the_missing_handler_wait_behind_it() -> None:
    """Rules 7 and 12."""

    @on("Placed", retry=SLOWLY)
    async def fails_once(order: Placed, context: Context) -> None:
        if order.number == 1 and context.attempt == 1:
            raise ValueError("not yet")
        context.write(WRITE, "accept", f"{order.order}{order.number}")

    fails_once.__name__ = "accept"
    async with bench() as it:
        old = await it.start(fails_once)
        await register(it, {"accept": [PLACED], "notify": [PLACED]})
        await it.emit(*placed("z0"))
        await it.settle()
        await it.emit(*placed("a1", "a2"))
        await it.settle()
        await old.stop()
        await it.start(fails_once, notify)
        await it.settle()

        assert await it.effects() == ["z0", "z0", "a1"]  # notify's a1; accept's holds everything behind it
        await it.pass_time(61)
        await it.settle()
        assert await it.effects(handler="accept") == ["z0", "a1", "a2"]
        assert await it.effects(handler="notify") == ["z0", "a1", "a2"]


@virtual
async def test_a_type_that_a_handler_has_in_the_new_version_only_waits_for_the_new_version() -> None:
    """Rule 12, for a handler that both have: the old one does not know what to do with the type."""

    @on("Placed")
    @on("Cancelled", topic="Placed")
    async def both(order: Placed, context: Context) -> None:
        context.write(WRITE, "accept", f"{context.record.offset}")

    both.__name__ = "accept"
    async with bench() as it:
        old = await it.start(accept)
        await it.settle()
        await register(it, {"accept": [PLACED, Trigger("Cancelled", "Placed")]})
        await it.emit(*placed("z0"))
        await it.settle()
        await it.publish(it.record(Cancelled(order="a"), topic="Placed"))
        await it.emit(*placed("a1"))
        await it.settle()
        assert await it.parked() == 2  # the second waits behind the first
        await old.stop()
        await it.start(both)
        await it.settle()

        assert await it.effects() == ["z0", "1", "2"]


# ── removed ───────────────────────────────────────────────────────────────────────────────────────────────────────


@virtual
async def test_a_handler_that_is_gone_with_nothing_waiting_is_retired_with_a_line(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Rule 12: "retired at start, with a line that says so"."""
    async with bench() as it:
        await (await it.start(accept, notify)).stop()
        with caplog.at_level(logging.INFO, "microflow.registration"):
            await it.start(accept)

        assert [record.getMessage() for record in caplog.records] == [
            "shop: the handler notify is gone, and nothing waits for it: it is retired"
        ]
        assert set((await registry(it)).handlers) == {"accept"}
        await it.emit(*placed("a1"))
        await it.settle()
        assert await it.parked() == 0


@virtual
async def test_of_a_handler_that_has_another_trigger_now_the_old_one_is_retired_with_a_line(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Rule 12: what is retired is said; the handler itself is not."""

    async def move(order: Cancelled, context: Context) -> None:
        context.write(WRITE, "notify", order.order)

    move.__name__ = "notify"
    async with bench() as it:
        await (await it.start(accept, notify)).stop()
        with caplog.at_level(logging.INFO, "microflow.registration"):
            await it.start(accept, on("Cancelled", topic="Placed")(move))

        assert [record.getMessage() for record in caplog.records] == [
            "shop: nothing triggers the handler notify by Placed any more: that is retired"
        ]
        assert set((await registry(it)).handlers["notify"].triggers) == {Trigger("Cancelled", "Placed")}
        await it.publish(it.record(Cancelled(order="a"), topic="Placed"))
        await it.emit(*placed("a1"))
        await it.settle()
        assert await it.effects(handler="notify") == ["a"]
        assert await it.parked() == 0


@virtual
async def test_a_start_that_is_refused_retires_nothing_and_says_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """Rule 12: what is retired at a start is retired by one that goes on."""

    def no_lifespan() -> None: ...

    async with bench() as it:
        await (await it.start(accept, notify)).stop()
        before = await registry(it)
        with caplog.at_level(logging.INFO, "microflow.registration"), pytest.raises(DefinitionError, match="lifespan"):
            await it.start(accept, lifespan=no_lifespan)

        assert not caplog.records
        assert await registry(it) == before


@virtual
async def test_a_handler_that_is_gone_and_waited_for_stops_the_start() -> None:
    """Rule 12: "A handler with open rows that is gone stops the start until `handlers retire|rename` says …"."""

    @on("Placed", retry=SLOWLY)
    async def take_payment(order: Placed) -> None:
        raise ValueError("not yet")

    @on("Placed")
    async def take_payments(order: Placed, context: Context) -> None:
        context.write(WRITE, "take_payments", order.order)

    async with bench() as it:
        first = await it.start(take_payment)
        await it.emit(*placed("a1", "a2", "b1"))
        await it.settle()
        await first.stop()
        with pytest.raises(DefinitionError) as refusal:
            await it.start(accept, take_payments)

        assert str(refusal.value).splitlines()[1:] == [
            "  Was it renamed to take_payments, or removed?",
            "  microflow handlers rename take_payment take_payments --service shop",
            "microflow handlers retire take_payment --service shop",
        ]
        assert "3 events wait for the handler take_payment of shop" in str(refusal.value)
        # Nothing was done: the old version goes on as if nobody had tried.
        assert set((await registry(it)).handlers) == {"take_payment"}
        assert not (await registry(it)).processes
        await it.start(take_payment)


@virtual
async def test_a_handler_that_another_process_has_is_not_gone() -> None:
    """Rule 12: "and is in no live process": the old version may go on beside the new one."""

    @on("Placed", retry=SLOWLY)
    async def take_payment(order: Placed, context: Context) -> None:
        if context.attempt == 1:
            raise ValueError("not yet")
        context.write(WRITE, "take_payment", order.order)

    async with bench() as it:
        old = await it.start(take_payment)
        await it.emit(*placed("a1"))
        await it.settle()
        new = await it.start(accept)
        await it.pass_time(61)
        await it.settle()

        assert await it.effects(handler="take_payment") == ["a"]
        assert set((await registry(it)).handlers) == {"take_payment", "accept"}
        await new.stop()
        await old.stop()


@virtual
async def test_what_only_the_last_process_of_the_old_version_had_is_retired_when_it_has_left() -> None:
    """Rule 12: nobody parks for a handler that nobody has any more, and no start is needed to notice."""
    async with bench() as it:
        old = await it.start(accept, notify)
        await it.start(accept)
        await it.emit(*placed("a1"))
        await it.settle()
        assert set((await registry(it)).handlers) == {"accept", "notify"}

        await old.stop()
        await it.settle()
        await it.emit(*placed("a2"))
        await it.settle()

        assert set((await registry(it)).handlers) == {"accept"}
        assert await it.effects(handler="notify") == ["a1"]
        assert await it.parked() == 0


@virtual
async def test_what_a_dead_process_had_is_retired_when_its_heartbeats_have_been_missed() -> None:
    """Rule 12: "in no live process"."""
    async with bench() as it:
        old = await it.start(accept, notify)
        await it.start(accept)
        await old.crash()
        await it.pass_time(5)
        assert set((await registry(it)).handlers) == {"accept", "notify"}
        await it.pass_time(60)

        assert set((await registry(it)).handlers) == {"accept"}


@virtual
async def test_what_waits_for_a_handler_that_nobody_has_any_more_is_told_while_others_run(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Rule 12: nothing is dropped, and the lines to type are in the log before the next start is stopped."""
    async with bench() as it:
        await it.start(accept)
        now = it.clock.now()
        store = await it.store()
        await store.handlers.register(
            {"accept": [PLACED], "notify": [PLACED]}, owner="new", now=now, until=now + timedelta(seconds=30)
        )
        await it.emit(*placed("a1"))
        await it.settle()
        with caplog.at_level(logging.WARNING, "microflow.registration"):
            await it.pass_time(120)

        assert len(caplog.records) == 1
        assert "1 event waits for the handler notify of shop" in caplog.text
        assert "microflow handlers retire notify --service shop" in caplog.text
        assert set((await registry(it)).handlers) == {"accept", "notify"}


@virtual
async def test_an_event_of_a_type_that_its_handler_does_not_handle_any_more_becomes_a_dead_letter() -> None:
    """Rule 12: nothing is lost, and nothing blocks its key for ever."""

    @on("Placed", retry=SLOWLY)
    @on("Cancelled", topic="Placed", retry=SLOWLY)
    async def both(order: Placed) -> None:
        raise ValueError("not yet")

    both.__name__ = "accept"
    async with bench() as it:
        old = await it.start(both)
        await it.publish(it.record(Cancelled(order="a"), topic="Placed"))
        await it.settle()
        await old.stop()
        await it.emit(*placed("a1"))
        await it.start(accept)
        await it.pass_time(61)
        await it.settle()

        (letter,) = await it.dead_letters()
        assert (letter.reason, letter.claim.handler, letter.record.offset) == ("contract", "accept", 0)
        assert letter.error.startswith("ContractError: accept does not handle Cancelled any more.")
        assert await it.effects() == ["a1"]


@virtual
async def test_a_process_that_was_away_so_long_that_its_handler_was_retired_registers_it_again() -> None:
    """Rule 12: a laptop that slept, not a new version: the handler is back, from now on."""
    async with bench() as it:
        await it.start(accept, notify)
        store = await it.store()
        await store.handlers.leave(owner="shop-0")
        assert await store.handlers.forget({"notify": [PLACED]}, now=it.clock.now()) == {"notify": {PLACED}}
        await it.emit(*placed("a1"))
        await it.settle()

        assert sorted(await it.effects()) == ["a1", "a1"]
        assert set((await registry(it)).handlers) == {"accept", "notify"}


# ── renamed ───────────────────────────────────────────────────────────────────────────────────────────────────────


@virtual
async def test_a_renamed_handler_goes_on_with_its_retries_and_repeats_nothing() -> None:
    """Rule 12: `handlers rename` moves claims and parked rows, so there is no double effect."""

    @on("Placed", retry=SLOWLY)
    async def take_payment(order: Placed, context: Context) -> None:
        if order.order == "a":
            raise ValueError("not yet")
        context.write(WRITE, "payment", f"{order.order}{order.number}")

    @on("Placed", retry=SLOWLY)
    async def charge(order: Placed, context: Context) -> None:
        assert (context.attempt > 1) == (order.number == 1)
        context.write(WRITE, "payment", f"{order.order}{order.number}")

    async with bench() as it:
        old = await it.start(take_payment)
        records = await it.emit(*placed("a1", "b1", "a2"))
        await it.settle()
        await old.stop()
        store = await it.store()
        assert await store.handlers.rename("take_payment", "charge", now=it.clock.now())

        await it.start(charge)
        await it.publish(*records)  # every event once more, at other offsets
        await it.pass_time(61)
        await it.settle()
        assert await it.effects() == ["b1", "a1", "a2"]
        assert await it.parked() == 0


@virtual
async def test_a_version_that_still_uses_the_old_name_of_a_handler_is_refused_and_ends() -> None:
    """Rule 12: both names would do everything twice."""
    async with bench() as it:
        first = await it.start(accept)
        await first.stop()
        store = await it.store()
        await store.handlers.rename("accept", "take", now=it.clock.now())
        with pytest.raises(DefinitionError, match="shop has a handler accept, which was renamed to take"):
            await it.start(accept)

        zombie = await it.start(notify)
        await store.handlers.leave(owner=zombie.name)
        await store.handlers.rename("notify", "tell", now=it.clock.now())
        await it.emit(*placed("a1"))
        await it.until_failed(zombie, DefinitionError)
        assert await it.effects() == []
        await zombie.crash()


@virtual
async def test_a_handler_keeps_its_parked_events_when_it_reads_another_topic() -> None:
    """Rule 8: parked rows hang on the handler, and it has it still."""

    @on("Placed", retry=SLOWLY)
    async def before(order: Placed) -> None:
        raise ValueError("not yet")

    @on("Placed", topic="orders")
    async def after(order: Placed, context: Context) -> None:
        context.write(WRITE, "accept", f"{context.record.topic} {order.number}")

    before.__name__ = after.__name__ = "accept"
    async with bench() as it:
        old = await it.start(before)
        await it.emit(*placed("a1"))
        await it.settle()
        await old.stop()
        await it.start(after, watches_the_old_topic)
        await it.pass_time(61)
        await it.settle()

        assert await it.effects() == ["Placed 1"]


@on("Cancelled", topic="Placed")
async def watches_the_old_topic(order: Cancelled) -> None: ...
