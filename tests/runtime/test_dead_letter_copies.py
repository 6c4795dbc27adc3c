"""Dead letters for others to read: a copy on the topic `dlq-<service>`, and the way back for one who sends it again."""

from __future__ import annotations

from datetime import timedelta

from microflow.dead_letter_copies import CUT, LOOK_EVERY, PREFIX, REDRIVE_FOR
from microflow.errors import Reject
from microflow.handlers import on
from microflow.ports import Headers, Record
from microflow.retries import Retry
from tests.runtime.bench import bench
from tests.runtime.disturbed import DisturbedLog, Moments
from tests.runtime.events import Placed
from tests.runtime.virtual_loop import virtual


@on("Placed", retry=Retry(attempts=3, first_delay=timedelta(seconds=1), jitter=0))
async def refuse(order: Placed) -> None:
    raise ZeroDivisionError("no such customer: Zoë")


def about(record: Record) -> dict[str, str]:
    """The headers that a copy has beyond its record's."""
    return {name.removeprefix(PREFIX): value.decode() for name, value in record.headers if name.startswith(PREFIX)}


def original(headers: Headers) -> Headers:
    return tuple((name, value) for name, value in headers if not name.startswith(PREFIX) and name != CUT)


@virtual
async def test_a_dead_letter_is_copied_byte_for_byte_with_what_is_known_of_its_end() -> None:
    """Conventions 1.4: the names of KIP-1191, and the partition of the source."""
    async with bench(partitions=3) as it:
        await it.start(refuse)
        sent = it.record(Placed(order="a", number=7))
        sent = sent._replace(partition=2, headers=(*sent.headers, ("x", b"\x00\xff"), ("x", b"twice")))
        began = it.clock.now()
        await it.publish(sent)
        await it.pass_time(10)

        (copy,) = await it.published("dlq-shop")
        assert (copy.partition, copy.key, copy.value, original(copy.headers)) == (2, b"a", sent.value, sent.headers)
        told = about(copy)
        times = [told.pop(name) for name in ("first.time", "last.time")]
        assert times[0] < times[1]
        assert times[0].startswith(began.isoformat()[:18])
        assert ", in refuse" in told.pop("exception.stacktrace")
        assert told == {
            "topic": "Placed",
            "partition": "2",
            "offset": "0",
            "group": "shop",
            "delivery.count": "3",
            "message": "ZeroDivisionError: no such customer: Zoë",
            "exception.class.name": "ZeroDivisionError",
            "handler": "refuse",
        }
        (letter,) = await it.dead_letters()
        assert letter.record.value == sent.value


@virtual
async def test_a_record_that_cannot_be_read_is_copied_too() -> None:
    """What nobody can decode is what others want to look at."""
    async with bench() as it:
        await it.start(refuse)
        sent = it.record(Placed(order="a"))
        broken = sent._replace(key=None, value=b"\xff{", headers=(*sent.headers[:2], ("ce_id", b"\xff")))
        await it.publish(broken)
        await it.settle()

        (copy,) = await it.published("dlq-shop")
        assert (copy.key, copy.value, original(copy.headers)) == (None, b"\xff{", broken.headers)
        assert (about(copy)["handler"], about(copy)["exception.class.name"]) == ("", "DecodeError")


@virtual
async def test_a_copy_that_is_too_large_is_cut_and_the_database_keeps_all_bytes() -> None:
    """Conventions 1.4: "the topic copy is cut at the size limit with a pointer"."""
    async with bench() as it:
        await it.start(refuse)
        sent = it.record(Placed(order="a"))
        room = 100_000 - sum(len(name) + len(value) for name, value in sent.headers) - len(sent.key or b"")
        sent = sent._replace(value=(sent.value or b"").ljust(room))
        await it.publish(sent)
        await it.pass_time(10)

        (copy,) = await it.published("dlq-shop")
        assert sent.value is not None
        assert copy.value is not None
        assert sent.value.startswith(copy.value)
        assert 98_000 < len(copy.value) < room
        assert dict(copy.headers)[CUT] == str(room).encode()
        (letter,) = await it.dead_letters()
        assert letter.record.value == sent.value


@virtual
async def test_without_its_topic_a_service_works_and_copies_once_the_topic_is_there() -> None:
    """A missing topic stops no service and blocks no outbox: the dead letter is in the database."""
    async with bench() as it:
        log = DisturbedLog(it.log, Moments())
        log.missing.add("dlq-shop")
        await it.start(refuse, transport=lambda _: log)
        await it.emit(Placed(order="a"))
        await it.pass_time(10)
        assert len(await it.dead_letters()) == 1
        assert (await (await it.store()).outbox.status()).pending == 0

        log.missing.clear()
        await it.pass_time(LOOK_EVERY.total_seconds())
        await it.emit(Placed(order="b"))
        await it.pass_time(10)

        assert [copy.key for copy in await it.published("dlq-shop")] == [b"b"]


@virtual
async def test_a_topic_of_copies_that_is_gone_collects_no_more_of_them() -> None:
    """A missing topic blocks no outbox."""
    async with bench() as it:
        log = DisturbedLog(it.log, Moments())
        await it.start(refuse, transport=lambda _: log)
        log.missing.add("dlq-shop")
        for order in "abcdef":
            await it.emit(Placed(order=order))
            await it.pass_time(10)

        assert len(await it.dead_letters()) == 6
        assert (await (await it.store()).outbox.status()).pending <= 1


@virtual
async def test_a_service_that_reads_its_own_dead_letters_and_fails_does_not_feed_itself() -> None:
    """No loops: the copy of a copy is never made, whoever reads whose."""

    @on("Placed", topic="dlq-shop", retry=Retry.never())
    async def examine(order: Placed) -> None:
        raise Reject("still wrong")

    async with bench() as it:
        await it.start(refuse, examine)
        await it.emit(Placed(order="a"))
        await it.pass_time(30)

        assert sorted(letter.claim.handler for letter in await it.dead_letters()) == ["examine", "refuse"]
        assert len(await it.published("dlq-shop")) == 1


@virtual
async def test_a_redrive_publishes_nothing() -> None:
    """It goes through the service's own database."""
    attempts = 0

    @on("Placed", retry=Retry.never())
    async def refuse_once(order: Placed) -> None:
        nonlocal attempts
        attempts += 1
        if attempts == 1:
            raise ZeroDivisionError

    async with bench() as it:
        process = await it.start(refuse_once)
        await it.emit(Placed(order="a"))
        await it.settle()
        store = await it.store()
        (letter,) = await it.dead_letters()
        await store.dead_letters.redrive([letter.id], now=it.clock.now())
        await it.pass_time(2)

        assert attempts == 2
        assert process.outcomes() == {"dead": 1, "done": 1}
        assert len(await it.published("dlq-shop")) == 1
        assert len(await it.published("Placed")) == 1


@virtual
async def test_a_record_that_is_sent_again_is_for_the_handler_that_it_names_and_for_nobody_else() -> None:
    """Conventions 1.4: other groups skip it without touching their inbox."""
    seen: list[str] = []
    is_mended = False

    @on("Placed", retry=Retry.never())
    async def mend(order: Placed) -> None:
        seen.append("mend")
        if not is_mended:
            raise ZeroDivisionError

    @on("Placed")
    async def note(order: Placed) -> None:
        seen.append("note")

    @on("Placed", name="other")
    async def other(order: Placed) -> None:
        seen.append("other")

    async with bench() as it:
        process = await it.start(mend, note)
        await it.start(other, name="reports")
        (sent,) = await it.emit(Placed(order="a"))
        await it.settle()
        assert sorted(seen) == ["mend", "note", "other"]
        (copy,) = await it.published("dlq-shop")
        seen.clear()
        is_mended = True
        again = Record("Placed", 0, copy.key, copy.value, (*original(copy.headers), (REDRIVE_FOR, b"shop/mend")))
        assert original(again.headers)[: len(sent.headers)] == sent.headers

        await it.publish(again, again)
        await it.pass_time(2)
        await it.settle()

        assert seen == ["mend"]
        assert [letter.state for letter in await it.dead_letters()] == ["done"]
        assert process.outcomes()["done"] == 2


@virtual
async def test_a_record_that_is_sent_again_and_was_never_seen_is_handled_by_the_named_handler() -> None:
    """Its dead letter may be in another database, or long gone."""
    seen: list[str] = []

    @on("Placed")
    async def mend(order: Placed) -> None:
        seen.append("mend")

    @on("Placed")
    async def note(order: Placed) -> None:
        seen.append("note")

    async with bench() as it:
        await it.start(mend, note)
        record = it.record(Placed(order="a"))
        for target in (b"shop/mend", b"shop/nobody", b"others/note", b"\xff"):
            await it.publish(record._replace(headers=(*record.headers, (REDRIVE_FOR, target))))
        await it.settle()
        assert seen == ["mend"]

        await it.publish(record)
        await it.settle()
        assert seen == ["mend", "note"]
