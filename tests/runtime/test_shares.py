"""Shares: what is parked for a handler runs where there is one that has it, in one place at a time (rules 8, 12)."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from datetime import timedelta

from microflow.context import Context
from microflow.errors import Reject
from microflow.handlers import on
from microflow.limits import Limits
from microflow.ports import Owner, TopicPartition
from microflow.retries import Retry
from microflow.shares import home_of
from tests.runtime.bench import WRITE, Gate, bench
from tests.runtime.events import Cancelled, Placed
from tests.runtime.virtual_loop import virtual

FIRST = TopicPartition("Placed", 0)
NOTIFYS = home_of((FIRST, "notify"))
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


@virtual
async def test_events_for_a_handler_of_the_new_version_run_there_while_the_old_one_has_the_partition() -> None:
    """Rule 12: a handler added in a rolling deploy misses no event, and none is handled twice; their order is kept."""
    async with bench() as it:
        old = await it.start(accept)
        await it.emit(*placed("a1", "b1"))
        await it.settle()
        new = await it.start(accept, notify)
        expected = []
        for number in range(2, 22):
            names = [f"{key}{number}" for key in "abc"]
            expected += names
            await it.emit(*placed(*names))
            await it.pass_time(0.3)
        await it.pass_time(3)
        await it.settle()

        notified = await it.effects(handler="notify")
        assert {report.handler for report in new.reports} == {"notify"}
        assert sorted(notified) == sorted(expected)
        for key in "abc":
            numbers = [int(each[1:]) for each in notified if each[0] == key]
            assert numbers == sorted(numbers)
        assert await it.parked() == 0

        await old.stop()
        await it.emit(*placed("a22"))
        await it.settle()
        assert (await it.effects())[-2:] == ["a22", "a22"]
        assert Counter(await it.effects(handler="accept")).most_common(1)[0][1] == 1


@virtual
async def test_of_two_processes_that_have_the_handler_one_runs_it_and_the_other_takes_over_when_it_dies() -> None:
    """Rule 12: "two processes never run one key of a handler at once; a lease of a dead process ends"."""
    gate, running = Gate(), 0

    @on("Placed")
    async def notify(order: Placed, context: Context) -> None:
        nonlocal running
        running += 1
        assert running == 1
        try:
            await gate.pass_through(str(order.number))
        finally:
            running -= 1
        context.write(WRITE, "notify", f"{order.order}{order.number}")

    async with bench() as it:
        await it.start(accept)
        news = [await it.start(accept, notify), await it.start(accept, notify)]
        await it.emit(*placed("a1", "a2", "a3"))
        await it.until(lambda: gate.waiting == ["1"])
        gate.open("1")
        await it.until(lambda: gate.waiting == ["2"])
        await it.pass_time(5)
        assert gate.waiting == ["2"]
        runner = next(each for each in news if each.reports)
        (other,) = [each for each in news if each is not runner]
        await runner.crash()
        assert running == 0
        await it.pass_time(15)
        assert (other.reports, gate.waiting) == ([], [])  # it may only be slow
        await it.pass_time(30)
        await it.until(lambda: gate.waiting == ["2"])
        gate.open()
        await it.settle()

        assert await it.effects(handler="notify") == ["a1", "a2", "a3"]
        assert [report.outcome for report in other.reports] == ["done", "done"]


@virtual
async def test_an_owner_that_has_the_handler_leaves_its_events_to_who_runs_them_until_they_are_given_back() -> None:
    """Rule 12: "two processes never run one key of a handler at once", when the partition moves meanwhile."""
    gate, running = Gate(), 0

    @on("Placed")
    async def notify(order: Placed, context: Context) -> None:
        nonlocal running
        running += 1
        assert running == 1
        await gate.pass_through(f"{order.order}{order.number}")
        running -= 1
        context.write(WRITE, "notify", f"{order.order}{order.number}")

    async with bench() as it:
        old = await it.start(accept)
        first = await it.start(accept, notify)
        await it.emit(*placed("a1", "a2"))
        await it.until(lambda: gate.waiting == ["a1"])
        second = await it.start(accept, notify)
        await old.stop()
        await it.pass_time(3)
        owners = await (await it.store()).partitions.owners()
        owner = first if owners[FIRST].owner == first.name else second
        assert owners[NOTIFYS].owner == first.name
        await it.emit(*placed("a3"))
        await it.pass_time(3)
        assert gate.waiting == ["a1"]

        gate.open()
        await it.pass_time(3)
        await it.settle()
        assert await it.effects(handler="notify") == ["a1", "a2", "a3"]
        assert (await (await it.store()).partitions.owners())[NOTIFYS].owner is None
        assert [report.handler for report in owner.reports if report.outcome == "done"].count("notify") >= 2


@virtual
async def test_what_a_zombie_did_with_a_share_that_others_have_taken_is_not_committed() -> None:
    """Rules 12 and 14: the transaction is fenced by the share's own epoch."""
    gate = Gate()

    @on("Placed")
    async def notify(order: Placed, context: Context) -> None:
        await gate.pass_through(order.order)
        context.write(WRITE, "notify", "zombie")

    async with bench() as it:
        await it.start(accept)
        zombie = await it.start(accept, notify)
        await it.emit(*placed("a1"))
        await it.until(lambda: gate.waiting)
        store = await it.store()
        await store.partitions.take([NOTIFYS], owner="somebody")
        gate.open()
        await it.until(lambda: zombie.told("dropped"))

        assert await it.effects(handler="notify") == []
        assert await it.parked() == 1
        await it.pass_time(60)  # nobody of this name lives
        await it.settle()
        assert await it.effects(handler="notify") == ["zombie"]


@virtual
async def test_a_retry_of_a_handler_that_the_owner_does_not_have_comes_at_its_time() -> None:
    """Rule 12: with its attempts, and its dead letter at their end."""

    @on("Placed", retry=SLOWLY)
    async def notify(order: Placed, context: Context) -> None:
        if order.order == "x":
            raise Reject("never")
        if context.attempt < 3:
            raise ValueError("not yet")
        context.write(WRITE, "notify", f"{order.order}{order.number}")

    async with bench() as it:
        await it.start(accept)
        new = await it.start(accept, notify)
        await it.emit(*placed("a1", "x1", "a2"))
        await it.pass_time(3)
        await it.settle()
        assert [each.outcome for each in new.reports] == ["retry", "dead"]
        await it.pass_time(400)
        await it.settle()

        assert new.outcomes() == {"retry": 4, "dead": 1, "done": 2}
        assert await it.effects(handler="notify") == ["a1", "a2"]
        assert [letter.reason for letter in await it.dead_letters()] == ["rejected"]


@virtual
async def test_a_type_that_only_the_new_version_of_a_handler_handles_runs_there() -> None:
    """Rule 12, for a handler that both versions have: what the owner can run itself it runs, before and after."""

    @on("Placed")
    @on("Cancelled", topic="Placed")
    async def both(order: Placed, context: Context) -> None:
        context.write(WRITE, "accept", f"{context.record.offset}")

    both.__name__ = "accept"
    async with bench() as it:
        old = await it.start(accept)
        await it.settle()
        new = await it.start(both)
        await it.publish(it.record(Cancelled(order="a"), topic="Placed"))
        await it.emit(*placed("a1", "b1"))
        await it.pass_time(5)
        await it.settle()

        assert sorted(await it.effects()) == ["0", "1", "b1"]  # the second of the key waited for the first, there
        assert new.outcomes() == {"done": 2}
        owners = await (await it.store()).partitions.owners()
        assert owners[home_of((FIRST, "accept"))].owner is None  # given back
        await it.emit(*placed("a2"))
        await it.settle()
        assert [report.record.offset for report in old.told("done")] == [2, 3]


@virtual
async def test_a_type_that_only_the_old_version_of_a_handler_handles_runs_there_while_it_lives() -> None:
    """Rule 12: and is a dead letter only when nobody handles it any more."""

    @on("Placed")
    @on("Cancelled", topic="Placed")
    async def both(order: Placed, context: Context) -> None:
        context.write(WRITE, "accept", f"{context.record.offset}")

    both.__name__ = "accept"
    async with bench() as it:
        first = await it.start(accept)
        await it.start(both)
        await it.publish(it.record(Cancelled(order="a"), topic="Placed"))
        await it.pass_time(3)
        await it.settle()

        assert await it.effects() == ["0"]
        assert await it.dead_letters() == []
        assert {report.outcome for report in first.reports} == {"waiting"}


@virtual
async def test_parked_events_of_a_topic_that_the_service_does_not_read_any_more_are_run() -> None:
    """Rule 8: "rows whose partition nobody owns any more are found a home": the handler reads another topic now."""

    @on("Placed", retry=SLOWLY)
    async def before(order: Placed) -> None:
        raise ValueError("not yet")

    @on("Placed", topic="orders")
    async def after(order: Placed, context: Context) -> None:
        context.write(WRITE, "accept", f"{context.record.topic} {order.number}")

    before.__name__ = after.__name__ = "accept"
    async with bench() as it:
        old = await it.start(before)
        await it.emit(*placed("a1", "a2"))
        await it.settle()
        await old.stop()
        await it.start(after)
        await it.pass_time(90)
        await it.settle()

        assert await it.effects() == ["Placed 1", "Placed 2"]


@virtual
async def test_parked_events_of_partitions_that_are_gone_are_run_in_order() -> None:
    """Rule 8: a topic that was made anew with fewer partitions."""

    @on("Placed", retry=SLOWLY)
    async def flaky(order: Placed, context: Context) -> None:
        if context.attempt == 1 and order.number == 1:
            raise ValueError("not yet")
        context.write(WRITE, "accept", f"{order.order}{order.number}")

    async with bench() as it:
        first = await it.start(flaky)
        store = await it.store()
        records = [it.record(each, partition=0) for each in placed("a1", "a2", "b2")]
        await it.publish(*records)
        await it.settle()
        # As if they had been read from partitions that the topic does not have any more.
        store._database.writer.execute(
            "insert into microflow_partitions (service, topic, number, epoch, owner) "
            "values ('shop', 'Placed', 7, 1, ?)",
            (first.name,),
        )
        store._database.writer.execute(
            "update microflow_parked set partition = (select id from microflow_partitions where number = 7)"
        )
        await first.stop()
        await it.start(flaky)
        await it.pass_time(30)
        assert await it.effects() == ["b2"]
        await it.pass_time(60)
        await it.settle()

        assert await it.effects() == ["b2", "a1", "a2"]
        assert await it.parked() == 0


@virtual
async def test_a_process_that_stops_gives_its_shares_back_at_once() -> None:
    """Rule 24: nothing in a stop is needed for correctness, and nobody waits for the heartbeats of one that said so."""
    async with bench() as it:
        await it.start(accept)
        new = await it.start(accept, notify)
        await it.emit(*placed("a1"))
        await it.pass_time(3)
        store = await it.store()
        held = (await store.partitions.owners())[NOTIFYS]
        await new.stop()

        assert held == Owner(held.epoch, new.name)
        assert (await store.partitions.owners())[NOTIFYS] == Owner(held.epoch, None)


@virtual
async def test_events_of_a_share_that_a_process_died_with_are_handled_with_care() -> None:
    """Rule 6: what is parked of a share was in hand when its owner ended, as a partition's events were."""
    gate = Gate()

    @on("Placed")
    async def notify(order: Placed, context: Context) -> None:
        await gate.pass_through(order.order)
        context.write(WRITE, "notify", order.order)

    async with bench() as it:
        await it.start(accept)
        news = [await it.start(accept, notify) for _ in range(2)]
        await it.emit(*placed("a1", "b1", "c1"))
        await it.until(lambda: len(gate.waiting) == 3)
        owner = (await (await it.store()).partitions.owners())[NOTIFYS].owner
        await next(each for each in news if each.name == owner).crash()
        await it.pass_time(30)
        await it.until(lambda: gate.waiting)
        await it.pass_time(5)
        assert len(gate.waiting) == 1
        gate.open()
        await it.settle()

        assert sorted(await it.effects(handler="notify")) == ["a", "b", "c"]


@virtual
async def test_without_another_version_nobody_looks_for_shares_again_and_again() -> None:
    """A steady service asks nobody who runs what."""
    async with bench(partitions=3) as it:
        processes = [await it.start(accept, limits=replace(Limits(), heartbeat=timedelta(days=1))) for _ in range(2)]
        await it.pass_time(1)
        looked = [each.worker._parking._looked_at for each in processes]
        for number in range(20):
            await it.emit(*placed(f"a{number}", f"b{number}"))
            await it.pass_time(1)

        assert [each.worker._parking._looked_at for each in processes] == looked
        assert not any(each.worker._shares.may_soon_change for each in processes)
