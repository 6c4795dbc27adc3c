"""The intake: where reading starts, what is skipped, and what hostile records do (nothing)."""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import pytest

from microflow.context import Context
from microflow.errors import TransportError
from microflow.handlers import on
from microflow.ports import RebalanceListener, Record, Subscription
from microflow.retries import Retry
from microflow.transports.local import LocalTransport
from tests.runtime.bench import WRITE, bench
from tests.runtime.events import Accepted, Cancelled, Placed
from tests.runtime.telling import telling, told
from tests.runtime.virtual_loop import START, virtual


@virtual
async def test_a_service_without_stored_offsets_starts_at_the_earliest_record_and_says_how_many_that_is(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Rule 12."""

    @on("Placed")
    async def accept(order: Placed, context: Context) -> None:
        context.write(WRITE, "accept", str(order.number))

    async with bench() as it:
        await it.emit(*[Placed(order="a", number=number) for number in range(7)])
        logging.getLogger("microflow").setLevel(logging.INFO)
        try:
            with caplog.at_level(logging.INFO):
                await it.start(accept)
        finally:
            logging.getLogger("microflow").setLevel(logging.CRITICAL)
        await it.settle()

        assert len(await it.effects()) == 7
        assert any("earliest of 7 records" in record.getMessage() for record in caplog.records)


class DeafLog:
    """A log that answers nobody who reads, while it is `deaf`."""

    def __init__(self, transport: LocalTransport) -> None:
        self._transport = transport
        self.deaf = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    @asynccontextmanager
    async def subscribe(
        self, topics: Collection[str], *, group: str | None, listener: RebalanceListener
    ) -> AsyncIterator[DeafSubscription]:
        async with self._transport.subscribe(topics, group=group, listener=listener) as subscription:
            yield DeafSubscription(self, subscription)


class DeafSubscription:
    def __init__(self, log: DeafLog, subscription: Subscription) -> None:
        self._log = log
        self._subscription = subscription

    def __getattr__(self, name: str) -> Any:
        return getattr(self._subscription, name)

    async def fetch(self, **keywords: Any) -> Sequence[Record]:
        if self._log.deaf:
            raise TransportError("the disk is full")
        return await self._subscription.fetch(**keywords)


@virtual
async def test_a_log_that_does_not_answer_for_long_is_told_once_and_that_it_answers_again_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    @on("Placed")
    async def accept(order: Placed, context: Context) -> None:
        context.write(WRITE, "accept", order.order)

    with telling(caplog):
        async with bench() as it:
            log = DeafLog(it.open_log())
            await it.start(accept, transport=lambda _: log)
            log.deaf = True
            await it.emit(Placed(order="a"))
            await it.pass_time(60)
            log.deaf = False
            await it.pass_time(1)
            await it.settle()
            assert await it.effects() == ["a"]

    assert told(caplog, "the log") == [
        "the log does not answer; trying again: the disk is full",
        "the log is read again",
    ]


@virtual
async def test_start_latest_is_the_latest_of_the_first_start() -> None:
    """Rule 12: a crash before the first event skips none."""

    @on("Placed")
    async def accept(order: Placed, context: Context) -> None:
        context.write(WRITE, "accept", str(order.number))

    async with bench() as it:
        await it.emit(Placed(order="a", number=1))
        process = await it.start(accept, start="latest")
        await process.crash()
        await it.emit(Placed(order="a", number=2))
        await it.start(accept, start="latest")
        await it.settle()

        assert await it.effects() == ["2"]


@virtual
async def test_start_at_an_instant_begins_with_the_first_record_that_is_not_older() -> None:
    """Rule 12."""

    @on("Placed")
    async def accept(order: Placed, context: Context) -> None:
        context.write(WRITE, "accept", str(order.number))

    async with bench() as it:
        for number in range(4):
            await it.emit(Placed(order="a", number=number))
            await it.pass_time(60)
        await it.start(accept, start=START + timedelta(seconds=100))
        await it.settle()

        assert await it.effects() == ["2", "3"]


@virtual
async def test_a_service_goes_on_where_it_was_whatever_start_says() -> None:
    """Rule 12: it is for topics without a stored offset."""

    @on("Placed")
    async def accept(order: Placed, context: Context) -> None:
        context.write(WRITE, "accept", str(order.number))

    async with bench() as it:
        process = await it.start(accept)
        await it.emit(Placed(order="a", number=1))
        await it.settle()
        await process.stop()
        await it.emit(Placed(order="a", number=2))
        await it.start(accept, start="latest")
        await it.settle()

        assert await it.effects() == ["1", "2"]


@virtual
async def test_a_new_handler_on_a_topic_that_is_read_already_sees_new_events() -> None:
    """Rule 12."""

    @on("Placed")
    async def first(order: Placed) -> None: ...

    @on("Placed")
    async def added(order: Placed, context: Context) -> None:
        context.write(WRITE, "added", str(order.number))

    async with bench() as it:
        process = await it.start(first)
        await it.emit(Placed(order="a", number=1))
        await it.settle()
        await process.stop()
        await it.start(first, added)
        await it.emit(Placed(order="a", number=2))
        await it.settle()

        assert await it.effects() == ["2"]


@virtual
async def test_a_handler_that_is_gone_is_told_at_the_start(caplog: pytest.LogCaptureFixture) -> None:
    """Rule 12: "with a line that says so"."""

    @on("Placed")
    async def kept(order: Placed) -> None: ...

    @on("Placed")
    async def removed(order: Placed) -> None: ...

    async with bench() as it:
        process = await it.start(kept, removed)
        await process.stop()
        logging.getLogger("microflow").setLevel(logging.INFO)
        try:
            with caplog.at_level(logging.INFO):
                await it.start(kept)
        finally:
            logging.getLogger("microflow").setLevel(logging.CRITICAL)

        assert any("handler removed is gone" in record.getMessage() for record in caplog.records)


@virtual
async def test_other_types_on_a_shared_topic_are_skipped_and_counted() -> None:
    """Architecture §2."""

    @on("Placed", topic="orders")
    async def accept(order: Placed, context: Context) -> None:
        context.write(WRITE, "accept", order.order)

    async with bench() as it:
        process = await it.start(accept)
        events = [Cancelled(order="a"), Placed(order="a"), Accepted(order="a")]
        await it.publish(*[it.record(event, topic="orders") for event in events])
        await it.settle()

        assert await it.effects() == ["a"]
        assert process.worker._intake.skipped == 2
        assert process.outcomes() == {"done": 1}


@virtual
async def test_a_record_without_a_type_is_taken_only_if_one_type_is_bound_to_its_topic() -> None:
    """Architecture §2."""

    @on("Placed")
    async def accept(order: Placed, context: Context) -> None:
        context.write(WRITE, "accept", order.order)

    @on("Placed", topic="orders")
    async def shared(order: Placed, context: Context) -> None:
        context.write(WRITE, "shared", order.order)

    @on("Cancelled", topic="orders")
    async def cancel(order: Cancelled) -> None: ...

    async with bench() as it:
        process = await it.start(accept, shared, cancel)
        value = b'{"order":"a"}'
        await it.publish(Record("Placed", 0, b"a", value), Record("orders", 0, b"a", value))
        await it.settle()

        assert await it.effects() == ["a"]
        assert process.worker._intake.skipped == 1


HOSTILE = {
    "not UTF-8": (b"\xff\xfe\x00", ()),
    "null": (None, ()),
    "empty": (b"", ()),
    "deep": (b"[" * 90_000, ()),
    "wrong types": (json.dumps({"order": 1, "number": "many"}).encode(), ()),
    "not an object": (b"[1, 2]", ()),
    "truncated": (b'{"order": "a', ()),
    "huge number": (b'{"order": "a", "number": ' + b"9" * 5000 + b"}", ()),
    "unknown content type": (b'{"order":"a"}', (("content-type", b"image/png"),)),
    "type that is no UTF-8": (b'{"order":"a"}', (("ce_type", b"\xff"),)),
    "id with control characters": (b'{"order":"a"}', (("ce_type", b"Placed"), ("ce_id", b"a\x00b"))),
    "id of a megabyte": (b'{"order":"a"}', (("ce_type", b"Placed"), ("ce_id", b"i" * 90_000))),
    "broken structured mode": (b"{", (("content-type", b"application/cloudevents+json"),)),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_record_is_a_dead_letter_with_its_bytes_and_the_partition_goes_on(name: str) -> None:
    """Issue 3, hostile input; rule 7: its key's followers too."""
    value, headers = HOSTILE[name]

    @virtual
    async def scenario() -> None:
        @on("Placed", retry=Retry(attempts=5))
        async def accept(order: Placed, context: Context) -> None:
            context.write(WRITE, "accept", order.order)

        async with bench() as it:
            process = await it.start(accept)
            for key in (b"a", None, b"\xff"):
                await it.publish(Record("Placed", 0, key, value, headers))
            await it.emit(Placed(order="a"))
            await it.settle()

            assert await it.effects() == ["a"]
            letters = await it.dead_letters()
            assert [letter.reason for letter in letters] == ["decode"] * 3
            assert {(letter.record.value, letter.record.headers) for letter in letters} == {(value, headers)}
            assert sorted(letter.record.key or b"" for letter in letters) == [b"", b"a", b"\xff"]
            assert process.outcomes() == {"done": 1, "dead": 3}
            assert {letter.attempts for letter in letters} == {1}

    scenario()


@virtual
async def test_a_dead_letter_that_cannot_be_read_is_dead_again_when_it_is_redriven() -> None:
    """Rule 29, as far as it goes here: nothing hangs, nothing is lost."""

    @on("Placed")
    async def accept(order: Placed, context: Context) -> None:
        context.write(WRITE, "accept", order.order)

    async with bench() as it:
        await it.start(accept)
        await it.publish(Record("Placed", 0, b"a", b"{}", (("ce_type", b"\xff"),)))
        await it.settle()
        (letter,) = await it.dead_letters()
        store = await it.store()
        await store.dead_letters.redrive([letter.id], now=it.clock.now())
        await it.emit(Placed(order="a"))
        await it.pass_time(3)
        await it.settle()

        assert [each.state for each in await it.dead_letters()] == ["dead"]
        assert await it.effects() == ["a"]
        assert await it.parked() == 0
