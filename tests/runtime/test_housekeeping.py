"""Housekeeping: retention counts from completion, and never runs ahead of the watermark."""

from __future__ import annotations

from datetime import timedelta

from microflow.context import Context
from microflow.handlers import on
from microflow.limits import Limits
from microflow.retries import Retry
from tests.runtime.bench import WRITE, Bench, Gate, bench
from tests.runtime.events import Placed
from tests.runtime.virtual_loop import virtual

A_DAY = timedelta(days=1)


async def claims(it: Bench) -> int:
    return int((await it.store())._database.read("select count(*) from microflow_inbox")[0][0])


async def pass_days(it: Bench, days: int) -> None:
    it.clock.ahead += days * A_DAY  # the calendar goes on; the timers need not tick a million times for it
    await it.pass_time(601)


@virtual
async def test_finished_claims_are_kept_for_the_retention_and_then_forgotten() -> None:
    """Rule 25."""

    @on("Placed")
    async def accept(order: Placed, context: Context) -> None:
        context.write(WRITE, "accept", order.order)

    async with bench() as it:
        process = await it.start(accept, limits=Limits(fetch_wait=timedelta(minutes=5)))
        (record,) = await it.emit(Placed(order="a"))
        await it.settle()
        await pass_days(it, 6)
        assert await claims(it) == 1
        await it.publish(record)
        await it.settle()
        assert process.outcomes() == {"done": 1, "duplicate": 1}

        await pass_days(it, 2)

        assert await claims(it) == 0


@virtual
async def test_retention_counts_from_completion_and_not_from_arrival() -> None:
    """Rule 25: an event that was parked for ten days is remembered for seven more."""

    @on("Placed", retry=Retry(attempts=2, first_delay=10 * A_DAY, max_delay=20 * A_DAY, jitter=0))
    async def accept(order: Placed, context: Context) -> None:
        if context.attempt == 1:
            raise ValueError("flaky")
        context.write(WRITE, "accept", order.order)

    async with bench() as it:
        process = await it.start(accept, limits=Limits(fetch_wait=timedelta(minutes=5)))
        await it.emit(Placed(order="a"))
        await it.settle()
        await pass_days(it, 9)
        assert await claims(it) == 1  # while it is parked it stays, whatever the retention
        await pass_days(it, 2)
        assert process.told("done")
        await pass_days(it, 6)
        assert await claims(it) == 1
        await pass_days(it, 2)

        assert await claims(it) == 0


@virtual
async def test_no_claim_is_forgotten_before_the_stored_watermark_has_passed_it() -> None:
    """Rule 25: after a crash it would be read, and done, again."""
    gate = Gate()

    @on("Placed", deadline=timedelta(days=400))
    async def accept(order: Placed, context: Context) -> None:
        if order.order == "slow":
            await gate.pass_through("slow")
        context.write(WRITE, "accept", order.order)

    async with bench() as it:
        process = await it.start(accept, limits=Limits(fetch_wait=timedelta(minutes=5)))
        await it.emit(Placed(order="before"), Placed(order="slow"), Placed(order="after"))
        await it.until(lambda: len(process.reports) == 2)
        await pass_days(it, 30)
        assert await claims(it) == 1  # `before` is gone, `after` is not

        await process.crash()
        gate.open()
        await it.start(accept, limits=Limits(fetch_wait=timedelta(minutes=5)))
        await it.settle()

        assert await it.effects() == ["before", "after", "slow"]


@virtual
async def test_dead_letters_have_a_retention_of_their_own_and_keep_their_claim() -> None:
    """Rule 25."""

    @on("Placed", retry=Retry.never())
    async def accept(order: Placed) -> None:
        raise ValueError("never")

    async with bench() as it:
        await it.start(accept, limits=Limits(fetch_wait=timedelta(minutes=5)))
        await it.emit(Placed(order="a"))
        await it.settle()
        await pass_days(it, 80)
        (letter,) = await it.dead_letters()
        assert letter.record.value is not None
        assert await claims(it) == 1
        await pass_days(it, 11)
        assert await it.dead_letters() == []
        await pass_days(it, 1)

        assert await claims(it) == 0


@virtual
async def test_what_is_kept_for_ever_is_never_forgotten() -> None:
    """Rule 25, with `MICROFLOW_INBOX_RETENTION=forever`: no calendar begins early enough."""

    @on("Placed", retry=Retry.never())
    async def accept(order: Placed) -> None:
        if order.order == "b":
            raise ValueError("never")

    forever = Limits(
        fetch_wait=timedelta(minutes=5), inbox_retention=timedelta.max, dead_letter_retention=timedelta.max
    )
    async with bench() as it:
        await it.start(accept, limits=forever)
        await it.emit(Placed(order="a"), Placed(order="b"))
        await it.settle()

        await pass_days(it, 10_000)

        assert await claims(it) == 2
        assert len(await it.dead_letters()) == 1
