"""Sessions in virtual time: who is expelled from a group, when, and who is not."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import sqlite3
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest

from microflow.conformance.transports.harness import Member, member_of
from microflow.errors import TransportError
from microflow.transports.local import LocalTransport
from microflow.transports.local.signs import FORGET_AFTER, TIDY_EVERY, signs_of
from tests.asynchronous import asynchronous
from tests.transports.virtual_clock import VirtualClock, run_others

SESSION = timedelta(seconds=10)
HEARTBEAT = timedelta(milliseconds=500)
REBALANCE = timedelta(seconds=60)
FOREVER = timedelta(days=1000)


@contextlib.asynccontextmanager
async def joined(path: Path, clock: VirtualClock) -> AsyncIterator[Member]:
    """A member in a process of its own, as it were: what stops its clock stops its heart."""
    handle = LocalTransport.open(
        path, clock=clock, session_timeout=SESSION, heartbeat=HEARTBEAT, rebalance_timeout=REBALANCE
    )
    await handle.topics.ensure(["topic"])
    async with member_of(handle, ["topic"], group="group") as member:
        fetching = asyncio.ensure_future(keep_fetching(member))
        await run_others()
        yield member
        member.vanish()
        fetching.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await fetching
    await handle.close()


async def keep_fetching(member: Member) -> None:
    with contextlib.suppress(TransportError):  # closed
        while True:
            await member.fetch(wait=FOREVER)


async def pass_time(duration: timedelta, *clocks: VirtualClock) -> None:
    """Let time pass in steps of a heartbeat."""
    while duration > timedelta(0):
        for clock in clocks:
            await clock.advance(HEARTBEAT)
        duration -= HEARTBEAT


def clocks() -> tuple[VirtualClock, VirtualClock]:
    return VirtualClock(), VirtualClock()


@asynchronous
async def test_a_member_is_expelled_when_it_has_been_silent_for_its_session_and_not_before(tmp_path: Path) -> None:
    of_one, of_other = clocks()
    async with joined(tmp_path / "log.db", of_one) as silent, joined(tmp_path / "log.db", of_other) as other:
        silent.before_revoked = asyncio.Event().wait  # as a process that is stopped
        await pass_time(HEARTBEAT, of_one, of_other)

        await pass_time(SESSION - HEARTBEAT, of_other)
        assert len(other.partitions) == 3

        silent.vanish()
        await pass_time(2 * HEARTBEAT, of_other)
        assert len(other.partitions) == 6


@asynchronous
async def test_a_member_that_is_expelled_is_told_and_joins_anew(tmp_path: Path) -> None:
    of_one, of_other = clocks()
    async with joined(tmp_path / "log.db", of_one) as silent, joined(tmp_path / "log.db", of_other) as other:
        had = silent.partitions

        async def wake() -> None:
            silent.vanish()
            await of_one.advance(of_other.monotonic() - of_one.monotonic())

        silent.before_revoked = wake
        await pass_time(HEARTBEAT, of_one, of_other)
        await pass_time(SESSION, of_other)
        silent.vanish()
        await pass_time(2 * HEARTBEAT, of_other)

        assert silent.told[-2] == ("revoked", had)
        assert len(silent.partitions) == len(other.partitions) == 3


@asynchronous
async def test_a_long_callback_costs_nobody_its_membership(tmp_path: Path) -> None:
    of_one, of_other = clocks()
    drained = asyncio.Event()
    async with joined(tmp_path / "log.db", of_one) as slow:
        slow.before_revoked = drained.wait
        async with joined(tmp_path / "log.db", of_other) as other:
            await pass_time(REBALANCE - 4 * HEARTBEAT, of_one, of_other)
            assert other.told == []

            drained.set()
            await run_others()

            assert len(slow.partitions) == len(other.partitions) == 3


@asynchronous
async def test_a_member_that_does_not_give_up_is_expelled_after_the_rebalance_timeout(tmp_path: Path) -> None:
    of_one, of_other = clocks()
    async with joined(tmp_path / "log.db", of_one) as stuck:
        stuck.before_revoked = asyncio.Event().wait
        async with joined(tmp_path / "log.db", of_other) as other:
            await pass_time(REBALANCE - 2 * HEARTBEAT, of_one, of_other)
            assert other.told == []

            stuck.vanish()
            await pass_time(4 * HEARTBEAT, of_one, of_other)

            assert len(other.partitions) == 6


@pytest.mark.parametrize("step", [timedelta(days=1), timedelta(days=-1)])
def test_setting_the_time_of_day_expels_nobody(tmp_path: Path, step: timedelta) -> None:
    async def scenario() -> None:
        of_one, of_other = clocks()
        async with joined(tmp_path / "log.db", of_one) as one, joined(tmp_path / "log.db", of_other) as other:
            await pass_time(2 * HEARTBEAT, of_one, of_other)
            told = len(one.told), len(other.told)

            of_one.step = of_other.step = step
            await pass_time(3 * SESSION, of_one, of_other)

            assert (len(one.told), len(other.told)) == told

    asyncio.run(scenario())


@asynchronous
async def test_after_the_time_of_day_was_set_back_a_silent_member_is_still_expelled(tmp_path: Path) -> None:
    of_one, of_other = clocks()
    async with joined(tmp_path / "log.db", of_one) as silent, joined(tmp_path / "log.db", of_other) as other:
        await pass_time(2 * HEARTBEAT, of_one, of_other)
        silent.before_revoked = asyncio.Event().wait
        silent.vanish()

        of_other.step = timedelta(days=-1)
        await pass_time(SESSION + 2 * HEARTBEAT, of_other)

        assert len(other.partitions) == 6


@asynchronous
async def test_a_member_that_slept_itself_does_not_expel_those_that_slept_too(tmp_path: Path) -> None:
    of_one, of_other = clocks()
    async with joined(tmp_path / "log.db", of_one) as one, joined(tmp_path / "log.db", of_other) as other:
        await pass_time(2 * HEARTBEAT, of_one, of_other)
        told = len(one.told), len(other.told)

        await of_one.advance(timedelta(minutes=10))
        await of_other.advance(timedelta(minutes=10))
        await pass_time(SESSION, of_one, of_other)

        assert (len(one.told), len(other.told)) == told


@asynchronous
async def test_nobody_waits_for_a_member_that_has_been_silent_since_long_before(tmp_path: Path) -> None:
    of_one, of_other = clocks()
    async with joined(tmp_path / "log.db", of_one) as silent:
        silent.before_revoked = asyncio.Event().wait
        silent.vanish()
        await of_other.advance(timedelta(minutes=10))

        async with joined(tmp_path / "log.db", of_other) as newcomer:
            assert len(newcomer.partitions) == 6


@asynchronous
async def test_signs_that_were_removed_are_given_again(tmp_path: Path) -> None:
    of_one, of_other = clocks()
    async with joined(tmp_path / "log.db", of_one) as one, joined(tmp_path / "log.db", of_other) as other:
        told = len(one.told), len(other.told)
        shutil.rmtree(signs_of(tmp_path / "log.db"))

        await pass_time(2 * SESSION, of_one, of_other)

        assert (len(one.told), len(other.told)) == told
        assert len(os.listdir(signs_of(tmp_path / "log.db"))) == 2


@asynchronous
async def test_a_member_that_leaves_takes_its_sign_along(tmp_path: Path) -> None:
    clock = VirtualClock()
    async with joined(tmp_path / "log.db", clock):
        assert len(os.listdir(signs_of(tmp_path / "log.db"))) == 1

    assert os.listdir(signs_of(tmp_path / "log.db")) == []


@asynchronous
async def test_what_a_dead_process_left_behind_is_removed_some_day(tmp_path: Path) -> None:
    clock = VirtualClock()
    async with joined(tmp_path / "log.db", clock):
        left_behind = signs_of(tmp_path / "log.db") / "left-behind"
        left_behind.write_bytes(b"")
        os.utime(left_behind, (clock.now().timestamp(), clock.now().timestamp()))

        await pass_time(HEARTBEAT, clock)
        assert len(os.listdir(left_behind.parent)) == 2
        await clock.advance(FORGET_AFTER + TIDY_EVERY)
        await pass_time(HEARTBEAT, clock)

        assert len(os.listdir(left_behind.parent)) == 1


@asynchronous
async def test_a_member_that_cannot_say_it_leaves_is_seen_to_be_gone(tmp_path: Path) -> None:
    of_one, of_other = clocks()
    async with contextlib.AsyncExitStack() as stack:
        stays = await stack.enter_async_context(joined(tmp_path / "log.db", of_other))
        async with joined(tmp_path / "log.db", of_one) as leaves:
            assert len(leaves.partitions) == 3
            with contextlib.closing(sqlite3.connect(tmp_path / "log.db", isolation_level=None)) as blocking:
                blocking.execute("begin immediate")
                leaves.vanish()
                closing = asyncio.ensure_future(leaves.subscription.close())
                while not closing.done():
                    await pass_time(HEARTBEAT, of_one, of_other)
                await closing

        await pass_time(2 * HEARTBEAT, of_other)

        assert len(stays.partitions) == 6
