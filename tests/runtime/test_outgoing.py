"""What was just committed goes out from memory: in order, behind nobody's back, and never at the cost of others."""

from __future__ import annotations

import asyncio
import json
from datetime import timedelta
from typing import Any

import pytest

from microflow.errors import StoreUnavailable
from microflow.handlers import on
from microflow.limits import Limits
from microflow.outgoing import SLOW
from microflow.ports import Changes, OutboxRow, TopicPartition
from microflow.relay import LEFT_TO_PUBLISHERS, Relay
from tests.runtime.bench import Bench, Gate, bench
from tests.runtime.disturbed import DisturbedLog, DisturbedStore, Moments
from tests.runtime.events import Accepted, Placed
from tests.runtime.virtual_loop import virtual

FIRST = TopicPartition("Accepted", 0)


@on("Placed")
async def accept(order: Placed) -> Accepted:
    return Accepted(order=order.order, number=order.number)


def a_row(it: Bench, key: str | None, number: int, *, publisher: int | None = None) -> OutboxRow:
    value = json.dumps({"order": key, "number": number}).encode()
    headers = (("ce_id", f"{key}{number}".encode()),)
    return OutboxRow("Accepted", None if key is None else key.encode(), value, headers, it.clock.now(), -1, publisher)


async def a_relay(it: Bench, store: Any, log: Any = None, **keywords: Any) -> Relay:
    relay = Relay(
        store.outbox,
        log or it.log,
        clock=it.clock,
        owner="relay",
        chance=it.chance.random,
        from_memory=True,
        **keywords,
    )
    await relay.learn(["Accepted"], version=0)
    return relay


async def emit(it: Bench, relay: Relay, *events: tuple[str | None, int], store: Any = None) -> bool:
    """One transaction; whether anything is left to a scan."""
    outgoing = relay.outgoing
    rows = [a_row(it, *event) for event in events]
    rows = [row._replace(publisher=outgoing.publisher_of(row.topic, row.key, row.headers)) for row in rows]
    with outgoing.handing_over(version=0) as hand_over:
        async with (store or await it.store()).transaction() as transaction:
            hand_over.take(rows, await transaction.write(Changes(outbox=rows)))
    return hand_over.leaves_some


async def append(it: Bench, *rows: OutboxRow) -> None:
    async with (await it.store()).transaction() as transaction:
        await transaction.write(Changes(outbox=list(rows)))


async def in_the_log(it: Bench) -> list[str]:
    values = [json.loads(each.value or b"") for each in await it.published("Accepted")]
    return [f"{value['order']}{value['number']}" for value in values]


@virtual
async def test_what_was_just_committed_is_published_without_a_look_at_the_outbox() -> None:
    """Rule 19."""
    moments = Moments()
    async with bench() as it:
        await it.start(accept, store=lambda store: DisturbedStore(store, moments))
        await it.pass_time(5)
        scans = moments.count["outbox.scan"]

        await it.emit(*(Placed(order="a", number=number) for number in range(5)))
        await it.pass_time(0.5)

        assert await in_the_log(it) == [f"a{number}" for number in range(5)]
        assert (await (await it.store()).outbox.status()).pending == 0
        assert moments.count["outbox.scan"] == scans


@virtual
async def test_what_another_process_has_in_memory_is_left_to_it_for_a_while_and_its_key_with_it() -> None:
    """Rule 19: it may have died between the commit and the publishing, or be at it right now."""
    async with bench() as it:
        store = await it.store()
        await append(it, a_row(it, "a", 1, publisher=77), a_row(it, "a", 2), a_row(it, "b", 1))
        relay = await a_relay(it, store)

        again = await relay.publish_pending()
        assert await in_the_log(it) == ["b1"]
        assert again is not None
        assert again < timedelta(milliseconds=10)  # it is soon done, and a2 must not wait longer than that
        await it.pass_time(LEFT_TO_PUBLISHERS.total_seconds())
        await relay.publish_pending()

        assert await in_the_log(it) == ["b1", "a1", "a2"]


@virtual
async def test_behind_a_row_of_the_same_transaction_that_is_left_to_the_scan_nothing_is_published_from_memory() -> None:
    """Rule 19. Who publishes may change between two rows of a transaction: a partition was waited for until now."""
    async with bench() as it:
        store = await it.store()
        relay = await a_relay(it, store)
        outgoing = relay.outgoing
        for key, first in (("a", None), ("b", 77)):
            rows = [a_row(it, key, 0, publisher=first), a_row(it, key, 1, publisher=outgoing.publisher)]
            with outgoing.handing_over(version=0) as hand_over:
                async with store.transaction() as transaction:
                    hand_over.take(rows, await transaction.write(Changes(outbox=rows)))
            await outgoing.settled()
        assert await in_the_log(it) == []
        await relay.publish_pending()
        await it.pass_time(LEFT_TO_PUBLISHERS.total_seconds())
        await relay.publish_pending()

        assert await in_the_log(it) == ["a0", "a1", "b0", "b1"]


@virtual
async def test_a_service_publishes_what_a_process_that_died_had_in_memory() -> None:
    """Rule 19: nobody is woken for it, so somebody has to look."""
    async with bench() as it:
        await it.start(accept)
        await it.pass_time(5)

        await append(it, a_row(it, "a", 1, publisher=77))
        await it.pass_time(LEFT_TO_PUBLISHERS.total_seconds() + 0.5)

        assert await in_the_log(it) == ["a1"]


@virtual
async def test_a_row_from_before_the_clock_was_set_back_is_left_to_nobody() -> None:
    """Failure 54: an hour of silence for a key would be a long while."""
    async with bench() as it:
        store = await it.store()
        await append(it, a_row(it, "a", 1, publisher=77))
        it.clock.ahead = -timedelta(hours=1)

        assert await (await a_relay(it, store)).publish_pending() is None

        assert await in_the_log(it) == ["a1"]


@virtual
async def test_a_key_that_waits_elsewhere_is_left_to_the_scan() -> None:
    """Rule 19: "found no older unacknowledged row of that key"."""
    async with bench() as it:
        relay = await a_relay(it, await it.store())
        await append(it, a_row(it, "a", 1))

        assert await emit(it, relay, ("a", 2), ("b", 1))
        await relay.outgoing.settled()
        assert await in_the_log(it) == ["b1"]
        await relay.publish_pending()

        assert await in_the_log(it) == ["b1", "a1", "a2"]


@virtual
async def test_a_transaction_that_is_rolled_back_publishes_nothing_and_what_came_behind_it_is_scanned() -> None:
    """Rule 19: whether it was committed is what nobody knows when its answer was lost."""
    moments = Moments()
    async with bench() as it:
        store = DisturbedStore(await it.store(), moments)
        relay = await a_relay(it, store)
        moments.plan("commit", StoreUnavailable("the disk is full"))
        with pytest.raises(StoreUnavailable):
            await emit(it, relay, ("a", 1), store=store)
        moments.plan("committed", StoreUnavailable("the answer was lost"))
        with pytest.raises(StoreUnavailable):
            await emit(it, relay, ("a", 2), store=store)

        assert await emit(it, relay, ("a", 3), store=store)
        await relay.outgoing.settled()
        assert await in_the_log(it) == []
        await relay.publish_pending()

        assert await in_the_log(it) == ["a2", "a3"]


@virtual
async def test_a_commit_that_takes_its_time_keeps_back_its_own_keys_only() -> None:
    """Rule 2: one slow commit of a lane is not everybody's."""
    async with bench() as it:
        relay = await a_relay(it, await it.store())
        outgoing, gate = relay.outgoing, Gate()
        slow = [a_row(it, "a", 1, publisher=outgoing.publisher)]

        async def commit_slowly() -> None:
            with outgoing.handing_over(version=0) as hand_over:
                async with (await it.store()).transaction() as transaction:
                    appended = await transaction.write(Changes(outbox=slow))
                hand_over.take(slow, appended)  # as a lane does whose commit has not been answered yet
                await gate.pass_through("commit")

        committing = asyncio.create_task(commit_slowly())
        await it.until(lambda: gate.waiting)
        assert not await emit(it, relay, ("a", 2), ("b", 1))
        await outgoing.settled()
        assert await in_the_log(it) == ["b1"]

        gate.open()
        await committing
        await outgoing.settled()
        assert await in_the_log(it) == ["b1", "a1", "a2"]


@virtual
async def test_after_a_failure_everything_of_the_partition_goes_back_to_the_scan() -> None:
    """Rule 20: and what is emitted behind it does, too."""
    async with bench() as it:
        log = DisturbedLog(it.log, Moments())
        relay = await a_relay(it, await it.store(), log)
        log.refuse_once.add(FIRST)

        assert not await emit(it, relay, ("a", 1), ("a", 2))
        await relay.outgoing.settled()
        assert await emit(it, relay, ("a", 3))
        await it.pass_time(1)
        assert await emit(it, relay, ("a", 4))  # the partition may be well, and a1 waits all the same
        assert await in_the_log(it) == []
        await relay.publish_pending()

        assert await in_the_log(it) == ["a1", "a2", "a3", "a4"]


@virtual
async def test_more_than_may_be_in_hand_waits_in_the_outbox() -> None:
    """Failure 37: memory is flat while the log is away, and all is published when it is back."""
    moments, gate = Moments(), Gate()

    async with bench() as it:
        log = DisturbedLog(it.log, moments)
        moments.plan("publish", lambda: gate.pass_through("publish"))
        process = await it.start(accept, transport=lambda _: log, limits=Limits(relay_in_hand=20, relay_batch=5))
        for number in range(10):
            await it.emit(*(Placed(order="abc"[number % 3], number=10 * number + each) for each in range(10)))
            await it.pass_time(0.1)
        assert len(process.worker._relay.outgoing.in_hand) <= 30
        assert (await (await it.store()).outbox.status()).pending == 100

        gate.open()
        await it.settle()

        found = await in_the_log(it)
        for key in "abc":
            numbers = [int(each[1:]) for each in found if each[0] == key]
            assert numbers == sorted(numbers)
        assert len(found) == 100


@virtual
async def test_deleting_what_is_acknowledged_delays_nobody_and_is_done_for_many_at_once() -> None:
    """Performance 5: the delete is no part of an event's way."""
    moments, gate = Moments(), Gate()
    async with bench() as it:
        moments.plan("outbox.delete", lambda: gate.pass_through("delete"))
        await it.start(accept, store=lambda store: DisturbedStore(store, moments))
        for number in range(20):
            await it.emit(Placed(order="a", number=number))
            await it.pass_time(0.01)

        assert await in_the_log(it) == [f"a{number}" for number in range(20)]
        assert moments.count["outbox.delete"] == 1
        gate.open()
        await it.settle()

        assert moments.count["outbox.delete"] == 2
        assert (await (await it.store()).outbox.status()).pending == 0


@virtual
async def test_a_partition_that_is_slow_is_waited_for_by_nobody_else() -> None:
    """Rule 20: it looks for its leader, and others go on meanwhile."""
    async with bench(partitions=2) as it:
        keys = {it._partitioner.partition(key.encode(), partitions=2): key for key in "abcdefgh"}
        log = _Slow(it.log, slow=FIRST, takes=2.0)
        relay = await a_relay(it, await it.store(), log)
        assert not await emit(it, relay, (keys[0], 1), (keys[1], 1))
        await relay.outgoing.settled()

        assert not await emit(it, relay, (keys[0], 2), (keys[1], 2))
        await it.pass_time(SLOW.total_seconds())
        assert await emit(it, relay, (keys[1], 3)) is False
        await it.pass_time(0.1)
        assert await in_the_log(it) == [f"{keys[0]}1", f"{keys[1]}1", f"{keys[1]}2", f"{keys[1]}3"]

        await relay.outgoing.settled()
        assert f"{keys[0]}2" in await in_the_log(it)


class _Slow:
    """A log one of whose partitions takes its time, with all that is published in the same call."""

    def __init__(self, transport: Any, *, slow: TopicPartition, takes: float) -> None:
        self._transport = transport
        self._slow = slow
        self._takes = takes

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    async def publish(self, records: Any) -> Any:
        if any(record.source == self._slow for record in records):
            await asyncio.sleep(self._takes)
        return await self._transport.publish(records)


@virtual
async def test_a_process_that_comes_again_under_its_name_takes_nothing_for_its_own_that_it_has_not() -> None:
    """Rule 19: "already in this process's own in-order queue" — a former life's is none."""
    async with bench() as it:
        store = await it.store()
        first, second = await a_relay(it, store), await a_relay(it, store)

        assert first.outgoing.publisher != second.outgoing.publisher
        await append(it, a_row(it, "a", 1, publisher=first.outgoing.publisher))
        assert await emit(it, second, ("a", 2))
