"""The relay: what was committed reaches the log, in order per key, whoever fails and however many relays run."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import pytest

from microflow.context import Context
from microflow.errors import StoreUnavailable, TransportError
from microflow.events import Event
from microflow.faults import FaultPoint
from microflow.handlers import on
from microflow.outbox import Outbox
from microflow.ports import Changes, OutboxRow, Record, TopicPartition
from microflow.relay import LEASE, Relay
from microflow.stores.sqlite import SqliteStore
from tests.runtime.bench import Bench, Gate, bench
from tests.runtime.disturbed import DisturbedLog, DisturbedStore, Moments
from tests.runtime.events import Accepted, Large, Placed
from tests.runtime.telling import telling, told
from tests.runtime.virtual_loop import virtual

FIRST = TopicPartition("Accepted", 0)


def events(*texts: str) -> list[Event]:
    """`a1` is the first event of the key a."""
    return [Accepted(order=text[0], number=int(text[1:])) for text in texts]


async def append(it: Bench, *texts: str) -> None:
    store = await it.store()
    async with store.transaction() as transaction:
        await Outbox("web", clock=it.clock).append(transaction.connection, *events(*texts))


def relay_of(
    it: Bench,
    store: SqliteStore | DisturbedStore,
    *,
    owner: str = "relay",
    log: DisturbedLog | None = None,
    **keywords: Any,
) -> Relay:
    transport: Any = log or it.log
    return Relay(store.outbox, transport, clock=it.clock, owner=owner, chance=it.chance.random, **keywords)


class Died(BaseException):
    """The end of a process."""


class Dying:
    """Dies at a fault point."""

    def __init__(self, point: FaultPoint) -> None:
        self._point = point

    def __call__(self, point: FaultPoint) -> None:
        if point == self._point:
            raise Died


async def in_the_log(it: Bench) -> list[str]:
    found = await it.published("Accepted")
    return [f"{(each.key or b'').decode()}{(each.value or b'').decode().split(':')[-1][:-1]}" for each in found]


@virtual
async def test_events_are_published_in_the_order_of_their_commits_and_deleted() -> None:
    """Rule 19."""
    async with bench() as it:
        store = await it.store()
        await append(it, "a1", "b1", "a2")
        await append(it, "a3", "b2")

        assert await relay_of(it, store, batch=2).publish_pending() is None

        assert await in_the_log(it) == ["a1", "b1", "a2", "a3", "b2"]
        assert (await store.outbox.status()).pending == 0


@virtual
async def test_the_first_failure_of_a_partition_stops_that_partition_only() -> None:
    """Rule 20."""
    async with bench(partitions=2) as it:
        store, log = await it.store(), DisturbedLog(it.log, Moments())
        keys = {it._partitioner.partition(key.encode(), partitions=2): key for key in "abcdefgh"}
        stuck, free = keys[0], keys[1]
        log.refuse.add(FIRST)
        await append(it, f"{stuck}1", f"{free}1", f"{stuck}2", f"{free}2")

        relay = relay_of(it, store, log=log, batch=1)
        assert await relay.publish_pending() is not None
        assert await in_the_log(it) == [f"{free}1", f"{free}2"]
        assert (await store.outbox.status()).pending == 2

        log.refuse.clear()
        await it.pass_time(1)
        assert await relay.publish_pending() is None
        assert await in_the_log(it) == [f"{stuck}1", f"{stuck}2", f"{free}1", f"{free}2"]


@virtual
async def test_a_partition_that_recovers_is_not_published_past_its_failure() -> None:
    """Rule 20: what comes later in the same pass waits, however well the partition is by then."""
    async with bench() as it:
        store, log = await it.store(), DisturbedLog(it.log, Moments())
        log.refuse_once.add(FIRST)
        await append(it, "a1", "a2", "a3")

        relay = relay_of(it, store, log=log, batch=1)
        assert await relay.publish_pending() is not None
        assert await in_the_log(it) == []
        await it.pass_time(1)
        assert await relay.publish_pending() is None

        assert await in_the_log(it) == ["a1", "a2", "a3"]


@virtual
async def test_a_relay_goes_on_by_itself_when_the_log_is_back() -> None:
    """Rule 20: with growing waits, and without anybody's help."""
    moments = Moments()

    @on("Placed")
    async def accept(order: Placed) -> Accepted:
        return Accepted(order=order.order)

    async with bench() as it:
        moments.plan("publish", *[TransportError("no broker") for _ in range(4)])
        await it.start(accept, transport=lambda transport: DisturbedLog(transport, moments))
        await it.emit(Placed(order="a"))
        await it.pass_time(0.01)
        assert await in_the_log(it) == []
        await it.pass_time(20)

        assert await in_the_log(it) == ["a0"]
        assert moments.count["publish"] == 5


@virtual
async def test_while_the_database_is_away_a_relay_is_not_hurried_by_what_wakes_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with telling(caplog):
        async with bench() as it:
            moments = Moments()
            relay = relay_of(it, DisturbedStore(await it.store(), moments))
            await append(it, "a1")
            moments.out = True
            running = asyncio.create_task(relay.run())
            for _ in range(240):
                relay.wake()
                await it.pass_time(0.25)
            assert moments.count["outbox.scan"] < 25

            moments.out = False
            await it.pass_time(6)
            assert await in_the_log(it) == ["a1"]
            running.cancel()

    assert told(caplog, "the outbox") == ["the outbox waits: the disk is full", "the outbox is published again"]


@virtual
async def test_a_crash_between_publishing_and_deleting_repeats_and_never_reorders() -> None:
    """Rule 19: the inbox of the next service absorbs it."""
    async with bench() as it:
        store, dying = await it.store(), Dying("before delete")
        await append(it, "a1", "a2", "a3")

        with pytest.raises(Died):
            await relay_of(it, store, reach=dying).publish_pending()
        await append(it, "a4")
        await it.pass_time(LEASE.total_seconds())
        await relay_of(it, store).publish_pending()

        assert await in_the_log(it) == ["a1", "a2", "a3", "a1", "a2", "a3", "a4"]


@virtual
async def test_what_is_repeated_takes_effect_once() -> None:
    """Rules 9 and 19: the whole way, over two services."""
    moments, gate = Moments(), Gate()
    seen: list[int] = []

    @on("Placed")
    async def accept(order: Placed) -> Accepted:
        return Accepted(order=order.order, number=order.number)

    @on("Accepted")
    async def note(accepted: Accepted) -> None:
        seen.append(accepted.number)

    async with bench() as it:
        first = await it.start(accept, store=lambda store: DisturbedStore(store, moments))
        second = await it.start(note, name="notes")
        moments.plan("outbox.delete", lambda: gate.pass_through("delete"))
        await it.emit(*[Placed(order="a", number=number) for number in range(5)])
        await it.until(lambda: gate.waiting and len(seen) == 5)
        await first.crash()
        await it.start(accept)
        await it.pass_time(10)
        await it.settle()

        assert seen == [0, 1, 2, 3, 4]
        assert len(await in_the_log(it)) > 5
        assert second.outcomes()["done"] == 5


@virtual
async def test_a_delete_that_fails_is_repeated_and_the_events_are_not() -> None:
    """Rule 19: what is acknowledged is in the log, whether or not the outbox knows."""
    async with bench() as it:
        moments = Moments()
        store = DisturbedStore(await it.store(), moments)
        moments.plan("outbox.delete", *[StoreUnavailable("gone") for _ in range(3)])
        await append(it, "a1", "a2")
        relay = relay_of(it, store)

        await relay.publish_pending()
        await append(it, "a3")
        await relay.publish_pending()

        assert await in_the_log(it) == ["a1", "a2", "a3"]
        assert (await store.outbox.status()).pending == 0


@virtual
async def test_one_relay_at_a_time_publishes_and_another_takes_over_when_its_lease_is_over() -> None:
    """Rule 19: "may run in several processes"."""
    async with bench() as it:
        store = await it.store()
        first, second = relay_of(it, store, owner="first"), relay_of(it, store, owner="second")
        await append(it, "a1")
        await first.publish_pending()
        await append(it, "a2")

        assert await second.publish_pending() is not None
        assert second.stands_by
        assert await in_the_log(it) == ["a1"]
        await it.pass_time(LEASE.total_seconds() + 0.1)  # the first one has crashed
        assert await second.publish_pending() is None

        assert await in_the_log(it) == ["a1", "a2"]


@virtual
async def test_a_relay_that_stands_by_does_not_wait_longer_the_more_often_it_is_woken() -> None:
    """Standing by is no failure: what the one that publishes commits must not put off the takeover from it."""
    async with bench() as it:
        store = await it.store()
        first, second = relay_of(it, store, owner="first"), relay_of(it, store, owner="second")
        await append(it, "a1")
        await first.publish_pending()
        await append(it, "a2")
        running = asyncio.create_task(second.run())
        for _ in range(20):
            second.wake()
            await it.pass_time(0.001)

        await it.pass_time(LEASE.total_seconds() * 4 / 3)  # the first one has crashed

        assert await in_the_log(it) == ["a1", "a2"]
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


@virtual
async def test_a_relay_that_leaves_lets_another_one_begin_at_once() -> None:
    """Rule 24."""
    async with bench() as it:
        store = await it.store()
        first, second = relay_of(it, store, owner="first"), relay_of(it, store, owner="second")
        await append(it, "a1")
        await first.publish_pending()
        await first.release()
        await append(it, "a2")

        assert await second.publish_pending() is None


@virtual
async def test_two_relays_at_once_repeat_events_and_reorder_none() -> None:
    """Rule 19: a lease protects nothing. One was stopped between reading and publishing, for longer than its lease."""
    async with bench() as it:
        moments, gate = Moments(), Gate()
        store = await it.store()
        await append(it, "a1", "a2")
        moments.plan("publish", lambda: gate.pass_through("publish"))
        stopped = relay_of(it, store, owner="first", log=DisturbedLog(it.log, moments))
        publishing = asyncio.get_running_loop().create_task(stopped.publish_pending())
        await it.until(lambda: gate.waiting)

        await it.pass_time(LEASE.total_seconds() + 1)
        await append(it, "a3")
        await relay_of(it, store, owner="second").publish_pending()
        gate.open()
        await publishing

        published = await in_the_log(it)
        assert published == ["a1", "a2", "a3", "a1", "a2"]
        assert list(dict.fromkeys(published)) == ["a1", "a2", "a3"]


@virtual
async def test_an_event_that_the_log_will_never_take_is_refused_when_it_is_emitted() -> None:
    """Rule 20: at the relay it would block its key for ever."""

    @on("Placed")
    async def accept(order: Placed, context: Context) -> Large:
        context.write("insert into effects (what) values ('written')")
        return Large(order=order.order, text="x" * (99_400 if order.order == "fits" else 100_000))

    async with bench() as it:
        process = await it.start(accept)
        await it.emit(Placed(order="large"), Placed(order="fits"))
        await it.settle()

        assert process.outcomes() == {"done": 1, "dead": 1}
        (letter,) = await it.dead_letters()
        assert (letter.record.key, letter.reason, letter.attempts) == (b"large", "contract", 1)
        assert await it.effects() == ["written"]
        assert [record.key for record in await it.published("Large")] == [b"fits"]


@virtual
async def test_the_largest_event_that_is_not_refused_is_taken_by_the_log() -> None:
    """Rule 20: both measure alike, to the byte."""

    @on("Placed")
    async def accept(order: Placed) -> Large:
        return Large(order=order.order, text="x" * order.number)

    async with bench() as it:
        process = await it.start(accept)
        await it.emit(Placed(order="a", number=1000))
        await it.settle()
        (record,) = await it.published("Large")
        size = len(record.key or b"") + len(record.value or b"")
        size += sum(len(name) + len(value) for name, value in record.headers)
        room = 100_000 - size + 1000

        await it.emit(Placed(order="a", number=room), Placed(order="a", number=room + 1))
        await it.settle()

        assert process.outcomes() == {"done": 2, "dead": 1}
        assert len(await it.published("Large")) == 2


@virtual
async def test_the_relay_is_woken_by_the_commit() -> None:
    """Issue 3: "wakes on commit (no polling latency)"."""

    @on("Placed")
    async def accept(order: Placed) -> Accepted:
        return Accepted(order=order.order)

    async with bench() as it:
        await it.start(accept)
        await it.pass_time(5)
        started = it.clock.monotonic()
        await it.emit(Placed(order="a"))
        while not await in_the_log(it):
            await asyncio.sleep(0)
            assert it.clock.monotonic() - started < timedelta(milliseconds=50)


@virtual
async def test_what_somebody_appends_from_outside_is_published_by_a_running_service() -> None:
    """Rule 21."""

    @on("Placed")
    async def accept(order: Placed) -> None: ...

    async with bench() as it:
        await it.start(accept)
        store = await it.store()
        async with store.transaction() as transaction:
            await Outbox("web", clock=it.clock).append(transaction.connection, Accepted(order="a"))
        await it.pass_time(0.1)

        assert await in_the_log(it) == ["a0"]


@virtual
async def test_what_is_rolled_back_is_never_published() -> None:
    """Rule 21: "rolled back with it, always"."""

    @on("Placed")
    async def accept(order: Placed) -> None: ...

    async with bench() as it:
        await it.start(accept)
        store = await it.store()

        async def fail_after_appending() -> None:
            async with store.transaction() as transaction:
                await Outbox("web", clock=it.clock).append(transaction.connection, Accepted(order="a"))
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            await fail_after_appending()
        await it.pass_time(2)

        assert await in_the_log(it) == []


@virtual
async def test_an_event_without_a_key_is_spread_and_published() -> None:
    """Rule 7: it has no order to keep."""

    @on("Placed")
    async def accept(order: Placed) -> list[Loose]:
        return [Loose(number=number) for number in range(20)]

    async with bench(partitions=2) as it:
        await it.start(accept)
        record = it.record(Placed(order="a"))
        await it.publish(Record(record.topic, 0, None, record.value, record.headers))
        await it.settle()

        found = await it.published("Loose")
        assert len(found) == 20
        assert {each.partition for each in found} == {0, 1}
        assert {each.key for each in found} == {None}


class Loose(Event):
    number: int


@virtual
async def test_a_topic_that_is_missing_holds_up_its_own_events_only() -> None:
    """Rule 23: they wait in the outbox until the topic is there."""
    async with bench() as it:
        store = await it.store()
        row = OutboxRow("no topic's name: ☠", b"a", b"{}", (), it.clock.now())
        async with store.transaction() as transaction:
            await transaction.write(Changes(outbox=[row]))
        await append(it, "a1")

        assert await relay_of(it, store).publish_pending() is not None

        assert await in_the_log(it) == ["a1"]
        assert (await store.outbox.status()).pending == 1
