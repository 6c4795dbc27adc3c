"""Destinations: only what fails waits, and it says so once."""

from __future__ import annotations

import logging
from datetime import timedelta

import pytest

from microflow.handlers import on
from microflow.ports import Changes, OutboxRow, TopicPartition
from microflow.relay import Relay
from tests.runtime.bench import Bench, bench
from tests.runtime.disturbed import DisturbedLog, DisturbedStore, Moments
from tests.runtime.events import Accepted, Placed
from tests.runtime.virtual_loop import virtual


def a_row(it: Bench, topic: str, key: str | None, text: str = "") -> OutboxRow:
    value = f"{key or ''}{text}".encode()
    return OutboxRow(topic, None if key is None else key.encode(), value, (("ce_id", value),), it.clock.now())


async def commit(it: Bench, *rows: OutboxRow) -> None:
    async with (await it.store()).transaction() as transaction:
        await transaction.write(Changes(outbox=list(rows)))


async def a_relay(it: Bench, log: DisturbedLog, *, batch: int = 500, in_hand: int = 2_000) -> Relay:
    outbox = (await it.store()).outbox
    return Relay(outbox, log, clock=it.clock, owner="relay", chance=it.chance.random, batch=batch, in_hand=in_hand)


async def values(it: Bench, topic: str) -> list[str]:
    return [(each.value or b"").decode() for each in await it.published(topic)]


@pytest.fixture(autouse=True)
def _warnings_are_kept(quiet: None, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, logger="microflow")


def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [each.getMessage() for each in caplog.records if each.levelno >= logging.WARNING]


async def publish_for(it: Bench, relay: Relay, seconds: int) -> None:
    """Let a relay try for so long, whenever it wants to."""
    end = it.clock.monotonic() + timedelta(seconds=seconds)
    while (again := await relay.publish_pending()) is not None and it.clock.monotonic() < end:
        await it.pass_time(max(again.total_seconds(), 0.001))


@virtual
async def test_a_topic_that_is_missing_is_told_once_a_minute_and_published_when_it_appears(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Rule 23, failure 62."""
    async with bench() as it:
        log = DisturbedLog(it.log, Moments())
        log.missing.add("gone")
        await commit(it, a_row(it, "gone", "a", "1"), a_row(it, "there", "a", "1"), a_row(it, "gone", "b", "1"))
        relay = await a_relay(it, log)

        await publish_for(it, relay, 150)
        assert await values(it, "there") == ["a1"]
        assert [each for each in told(caplog) if "gone" in each] == [
            "the topic gone does not exist; its events wait in the outbox"
        ] * 3
        assert not any(record.topic == "gone" for call in log.calls for record in call)

        log.missing.clear()
        await publish_for(it, relay, 10)
        assert await values(it, "gone") == ["a1", "b1"]
        assert told(caplog)[-1] == "the topic gone takes events again"


@virtual
async def test_a_topic_that_is_forbidden_holds_up_its_own_events_and_is_tried_with_one(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Failure 62: its breaker."""
    async with bench(partitions=2) as it:
        log = DisturbedLog(it.log, Moments())
        log.forbidden.add("secret")
        await commit(it, *(a_row(it, topic, key, "1") for key in "abcdef" for topic in ("secret", "open")))
        relay = await a_relay(it, log)

        await publish_for(it, relay, 100)
        assert sorted(await values(it, "open")) == [f"{key}1" for key in "abcdef"]
        tries = [[record for record in call if record.topic == "secret"] for call in log.calls]
        assert len([each for each in tries if each]) < 40
        assert all(len(each) == 1 for each in tries[1:] if each)
        assert len([each for each in told(caplog) if "secret" in each]) == 2

        log.forbidden.clear()
        await publish_for(it, relay, 10)
        assert sorted(await values(it, "secret")) == [f"{key}1" for key in "abcdef"]


@virtual
async def test_a_record_that_is_too_large_holds_up_its_key_only_and_is_named(caplog: pytest.LogCaptureFixture) -> None:
    """Failure 60: the topic's limit was lowered after it was emitted."""
    async with bench() as it:
        log = DisturbedLog(it.log, Moments())
        log.limit = 10
        await commit(
            it,
            a_row(it, "payments", "a", "1"),
            a_row(it, "payments", "a", "2" * 20),
            a_row(it, "payments", "b", "1"),
            a_row(it, "payments", "a", "3"),
            a_row(it, "payments", None, "4" * 20),
            a_row(it, "payments", "b", "2"),
            a_row(it, "payments", None, "5"),
        )
        relay = await a_relay(it, log)

        await publish_for(it, relay, 30)
        assert await values(it, "payments") == ["a1", "b1", "b2", "5"]
        (line, other) = [each for each in told(caplog) if "payments" in each]
        assert "event 2 of the outbox" in line
        assert "max.message.bytes" in line
        assert "microflow outbox skip 2" in line
        assert "event 5 of the outbox" in other

        log.limit = None
        await publish_for(it, relay, 120)
        assert [each for each in await values(it, "payments") if each.startswith("a")] == ["a1", "a" + "2" * 20, "a3"]
        assert (await (await it.store()).outbox.status()).pending == 0


@virtual
async def test_what_is_behind_a_record_that_was_given_up_is_published_with_the_next_scan() -> None:
    """Failure 60: the key waited for that one record, and would for up to a minute."""
    async with bench() as it:
        log = DisturbedLog(it.log, Moments())
        log.limit = 10
        await commit(it, a_row(it, "payments", "a", "1" * 20), a_row(it, "payments", "a", "2"))
        relay = await a_relay(it, log)
        await relay.publish_pending()
        assert await values(it, "payments") == []

        await (await it.store()).outbox.delete([1])
        await commit(it, a_row(it, "payments", "b", "1"))
        await relay.publish_pending()

        assert sorted(await values(it, "payments")) == ["a2", "b1"]


@virtual
async def test_a_scan_takes_nothing_of_a_partition_whose_earlier_rows_were_dropped_while_it_read() -> None:
    """Rule 20: the others of the partition are published too, and in order, but by the next scan."""
    async with bench() as it:
        log = DisturbedLog(it.log, Moments())
        log.limit = 10
        rows = [a_row(it, "payments", "a", "2" * 20)]
        rows += [a_row(it, "payments", "b", str(number)) for number in range(60)]
        await commit(it, *rows)

        # One page, and it waits for room: meanwhile the first call fails, and what was in hand is the next scan's.
        await publish_for(it, await a_relay(it, log, batch=4, in_hand=8), 30)

        assert await values(it, "payments") == [f"b{number}" for number in range(60)]


@virtual
async def test_while_nothing_goes_right_one_partition_is_told_of_once_a_minute(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Failure 62: "one line, repeated at most each minute"."""
    async with bench() as it:
        log = DisturbedLog(it.log, Moments())
        log.refuse.add(TopicPartition("payments", 0))
        await commit(it, a_row(it, "payments", "a", "1"))

        await publish_for(it, await a_relay(it, log), 110)

        assert told(caplog) == ["payments[0] does not take an event; trying again: no leader"] * 2


@virtual
async def test_a_stop_waits_for_no_topic_that_is_missing() -> None:
    """Rule 24: that may take for ever."""

    @on("Placed")
    async def accept(order: Placed) -> Accepted:
        return Accepted(order=order.order)

    async with bench() as it:
        log = DisturbedLog(it.log, Moments())
        process = await it.start(accept, transport=lambda _: log)
        log.missing.add("gone")
        await commit(it, a_row(it, "gone", "a", "1"))
        await it.pass_time(1)
        before = it.clock.monotonic()

        assert not await process.stop(drain=timedelta(seconds=20))

        assert it.clock.monotonic() - before < timedelta(seconds=1)


@virtual
async def test_a_partition_that_fails_is_not_tried_again_with_each_commit() -> None:
    """Failure 66: what is emitted meanwhile waits, and does not knock."""

    @on("Placed")
    async def accept(order: Placed) -> Accepted:
        return Accepted(order=order.order, number=order.number)

    async with bench() as it:
        moments = Moments()
        log = DisturbedLog(it.log, moments)
        log.refuse.add(TopicPartition("Accepted", 0))
        await it.start(accept, transport=lambda _: log, store=lambda store: DisturbedStore(store, moments))
        for number in range(200):
            await it.emit(Placed(order="a", number=number))
            await it.pass_time(0.05)
        assert len(log.calls) < 15

        log.refuse.clear()
        await it.pass_time(6)
        assert [int((each.value or b"").split(b":")[-1][:-1]) for each in await it.published("Accepted")] == list(
            range(200)
        )
