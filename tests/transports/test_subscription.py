"""A subscription under a clock that stands still: whatever happens is noticed without any time passing."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest

from microflow.conformance.transports.harness import Member, member_of, numbered, publish, values
from microflow.errors import TransportError
from microflow.ports import Record, TopicPartition
from microflow.transports.local import LocalTransport, reading
from tests.asynchronous import asynchronous
from tests.transports.virtual_clock import VirtualClock, run_others

WAIT = timedelta(hours=1)
ZERO = TopicPartition("topic", 0)


@contextlib.asynccontextmanager
async def a_log(clock: VirtualClock | None = None) -> AsyncIterator[LocalTransport]:
    transport = LocalTransport.open(Path("log.db"), clock=clock or VirtualClock(), memory=True, session_timeout=None)
    await transport.topics.ensure(["topic"])
    yield transport
    await transport.close()


@contextlib.asynccontextmanager
async def waiting(member: Member) -> AsyncIterator[asyncio.Task[list[Record]]]:
    fetching = asyncio.ensure_future(member.fetch(wait=WAIT))
    await run_others()
    assert not fetching.done()
    yield fetching
    if not fetching.done():
        fetching.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await fetching


@asynchronous
async def test_a_fetch_returns_at_once_for_a_record() -> None:
    async with a_log() as log, member_of(log, ["topic"], group="group") as member, waiting(member) as fetching:
        await publish(log, *numbered("topic", 1))
        await run_others()

        assert values(fetching.result()) == [0]


@asynchronous
async def test_a_fetch_returns_when_its_wait_is_over_and_not_before() -> None:
    clock = VirtualClock()
    async with a_log(clock) as log, member_of(log, ["topic"], group="group") as member, waiting(member) as fetching:
        await clock.advance(WAIT - timedelta(microseconds=1))
        assert not fetching.done()

        await clock.advance(timedelta(microseconds=1))

        assert fetching.result() == []


@asynchronous
async def test_a_fetch_returns_at_once_when_a_partition_is_resumed() -> None:
    async with a_log() as log, member_of(log, ["topic"], group="group") as member:
        async with waiting(member):
            member.subscription.pause([ZERO])
        await publish(log, *numbered("topic", 1))
        async with waiting(member) as fetching:
            member.subscription.resume([ZERO])
            await run_others()

            assert values(fetching.result()) == [0]


@asynchronous
async def test_a_fetch_returns_at_once_when_the_subscription_is_closed() -> None:
    async with a_log() as log, member_of(log, ["topic"], group="group") as member, waiting(member) as fetching:
        await member.subscription.close()
        await run_others()

        assert fetching.result() == []
        with pytest.raises(TransportError, match="closed"):
            await member.fetch()


@asynchronous
async def test_a_rebalance_needs_no_time() -> None:
    async with a_log() as log, member_of(log, ["topic"], group="group") as one, waiting(one):
        assert len(one.partitions) == 6
        async with member_of(log, ["topic"], group="group") as other, waiting(other) as fetching:
            assert len(one.partitions) == len(other.partitions) == 3
            await publish(log, Record("topic", sorted(other.partitions)[0].partition, None, b"7"))
            await run_others()
            assert values(fetching.result()) == [7]
        await run_others()
        assert len(one.partitions) == 6


@asynchronous
async def test_the_members_of_a_handle_that_is_disconnected_vanish_at_once() -> None:
    async with a_log() as log, contextlib.AsyncExitStack() as stack:
        crashed = LocalTransport.open(log.path, clock=VirtualClock(), session_timeout=None)
        stack.push_async_callback(crashed.close)
        survivor = await stack.enter_async_context(member_of(log, ["topic"], group="group"))
        await stack.enter_async_context(waiting(survivor))
        zombie = await stack.enter_async_context(member_of(crashed, ["topic"], group="group"))
        await stack.enter_async_context(waiting(zombie))
        had = zombie.partitions
        zombie.before_revoked = asyncio.Event().wait  # it does not get far

        await crashed.disconnect()
        zombie.vanish()
        await run_others()

        assert len(survivor.partitions) == 6
        with pytest.raises(TransportError, match="too late"):
            await zombie.subscription.commit(dict.fromkeys(had, 1), metadata="")


@asynchronous
async def test_a_member_that_was_expelled_is_given_no_records_before_it_is_told() -> None:
    async with a_log() as log, member_of(log, ["topic"], group="group") as zombie, waiting(zombie) as fetching:
        zombie.before_revoked = asyncio.Event().wait

        await log.disconnect()
        await publish(log, *numbered("topic", 1))
        await run_others()

        assert not fetching.done()


@asynchronous
async def test_offsets_may_be_committed_while_partitions_are_being_given_up() -> None:
    async with a_log() as log, member_of(log, ["topic"], group="group") as one, waiting(one):

        async def commit() -> None:
            await one.subscription.commit({ZERO: 4}, metadata="last words")

        one.before_revoked = commit
        async with member_of(log, ["topic"], group="group") as other, waiting(other):
            assert (await other.subscription.committed([ZERO]))[ZERO] == (4, "last words")


@asynchronous
async def test_an_error_of_the_listener_is_raised_by_fetch_and_the_assignment_tried_again() -> None:
    async with a_log() as log, member_of(log, ["topic"], group="group") as member:
        await publish(log, *numbered("topic", 1))

        async def fail() -> None:
            raise LookupError("the store is gone")

        member.before_assigned = fail
        for _ in range(3):
            with pytest.raises(LookupError, match="the store is gone"):
                await member.fetch(wait=WAIT)

        async def succeed() -> None:
            return

        member.before_assigned = succeed
        while not member.records:
            with contextlib.suppress(LookupError):
                await member.fetch(wait=WAIT)
        assert values(member.records) == [0]


@asynchronous
async def test_a_listener_that_fails_to_give_up_is_taken_to_have_given_up() -> None:
    async with a_log() as log, member_of(log, ["topic"], group="group") as one, waiting(one) as fetching:

        async def fail() -> None:
            raise LookupError("cannot drain")

        one.before_revoked = fail
        async with member_of(log, ["topic"], group="group") as other:
            one.vanish()
            async with waiting(other):
                assert len(other.partitions) == 3
        with pytest.raises(LookupError, match="cannot drain"):
            await fetching


@asynchronous
async def test_closing_interrupts_a_callback_and_leaves_at_once() -> None:
    async with a_log() as log, member_of(log, ["topic"], group="group") as stuck:
        stuck.before_assigned = asyncio.Event().wait
        async with waiting(stuck):
            stuck.vanish()
            await stuck.subscription.close()
        async with member_of(log, ["topic"], group="group") as other, waiting(other):
            assert len(other.partitions) == 6


@asynchronous
async def test_a_subscription_may_be_closed_by_its_own_listener() -> None:
    async with a_log() as log, member_of(log, ["topic"], group="group") as member, waiting(member) as fetching:
        member.before_revoked = member.subscription.close
        async with member_of(log, ["topic"], group="group") as other:
            member.vanish()
            async with waiting(other):
                assert len(other.partitions) == 6
        assert await fetching == []


@asynchronous
async def test_a_closed_log_closes_its_subscriptions() -> None:
    async with a_log() as log:
        handle = LocalTransport.open(log.path, clock=VirtualClock(), session_timeout=None)
        async with member_of(handle, ["topic"], group="group") as member:
            async with waiting(member) as fetching:
                await handle.close()
                await handle.close()
                assert await fetching == []
            with pytest.raises(TransportError, match="closed"):
                await handle.publish(numbered("topic", 1))


@asynchronous
async def test_a_caller_with_a_backlog_does_not_keep_others_from_running() -> None:
    async with a_log() as log, member_of(log, ["topic"], group=None) as reader:
        await publish(log, *numbered("topic", 50))
        await reader.collect(1, max_records=1)
        turns = 0

        async def take_turns() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        other = asyncio.ensure_future(take_turns())
        await reader.collect(40, max_records=1)
        other.cancel()

        assert turns >= 30


@asynchronous
async def test_a_large_backlog_of_one_partition_holds_up_no_other() -> None:
    async with a_log() as log, member_of(log, ["topic"], group=None) as reader:
        await publish(log, *numbered("topic", 1000), *numbered("topic", 3, partition=1))

        first = await reader.fetch(max_records=10, wait=WAIT)

        assert values(first, partition=1) == [0, 1, 2]
        assert values(first, partition=0) == list(range(7))


@asynchronous
async def test_partitions_take_turns_when_there_is_not_room_for_all() -> None:
    async with a_log() as log, member_of(log, ["topic"], group=None) as reader:
        await publish(log, *(record for each in range(6) for record in numbered("topic", 10, partition=each)))

        turns = [(await reader.fetch(max_records=1, wait=WAIT))[0].partition for _ in range(12)]

        assert sorted(turns) == sorted([*range(6)] * 2)


@asynchronous
async def test_a_batch_has_bounded_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "MOST_BYTES", 1000)
    async with a_log() as log, member_of(log, ["topic"], group=None) as reader:
        await publish(log, *(Record("topic", each % 2, None, b"%0400d" % each) for each in range(20)))
        batches = []
        while len(reader.records) < 20:
            batches.append(await reader.fetch(wait=WAIT))

        assert max(map(len, batches)) == 3
        assert {len({record.partition for record in batch}) for batch in batches[:4]} <= {1, 2}
        for partition in range(2):
            assert values(reader.records, partition=partition) == list(range(partition, 20, 2))
        assert {record.partition for batch in batches[:2] for record in batch} == {0, 1}


@pytest.mark.parametrize(
    ("waiting_records", "room", "expected"),
    [
        ({"a": 5}, 3, {"a": 3}),
        ({"a": 100, "b": 1, "c": 100}, 21, {"a": 10, "b": 1, "c": 10}),
        ({"a": 2, "b": 2}, 10, {"a": 2, "b": 2}),
        ({"a": 9, "b": 9, "c": 9}, 2, {"a": 1, "b": 1}),
        ({}, 10, {}),
    ],
)
def test_room_is_shared_alike(waiting_records: dict[str, int], room: int, expected: dict[str, int]) -> None:
    given = {TopicPartition(name, 0): count for name, count in waiting_records.items()}

    assert {name.topic: count for name, count in reading.share(given, room).items()} == expected


@asynchronous
async def test_a_close_that_is_cancelled_does_not_keep_it_to_itself() -> None:
    """Whoever stops a service that takes too long to stop must be heard."""
    goes_on = asyncio.Event()

    async def be_slow_to_end() -> None:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        await goes_on.wait()

    async with a_log() as log:
        member = Member()
        member.before_assigned = be_slow_to_end
        async with log.subscribe(["topic"], group="group", listener=member) as subscription:
            member.attach(subscription)
            fetching = asyncio.ensure_future(member.fetch(wait=WAIT))
            await run_others()
            closing = asyncio.ensure_future(subscription.close())
            await run_others()
            closing.cancel()
            await run_others()
            goes_on.set()
            with pytest.raises(asyncio.CancelledError):
                await closing
            await fetching
