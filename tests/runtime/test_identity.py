"""Identity: one event, one effect, whatever is delivered how often; and nobody mixes up databases and logs."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from uuid import UUID

import pytest

from microflow.context import Context
from microflow.errors import IdentityError
from microflow.events import Event
from microflow.handlers import on
from microflow.ports import Record
from microflow.retries import Retry
from microflow.transports.local import LocalTransport
from tests.runtime.bench import WRITE, Gate, bench
from tests.runtime.events import Accepted, Placed, Rejected
from tests.runtime.virtual_loop import virtual


@virtual
async def test_duplicates_in_a_batch_run_once() -> None:
    """Rule 9: "a batch is de-duplicated by claim before anything runs"."""
    executed = 0

    @on("Placed")
    async def accept(order: Placed, context: Context) -> Accepted:
        nonlocal executed
        executed += 1
        context.write(WRITE, "accept", order.order)
        return Accepted(order=order.order)

    async with bench(partitions=2) as it:
        process = await it.start(accept)
        record = it.record(Placed(order="a"), partition=0)
        elsewhere = it.record(Placed(order="a"), partition=1)
        await it.publish(record, record, Record("Placed", 1, record.key, record.value, record.headers), elsewhere)
        await it.settle()

        assert executed == 2
        assert await it.effects() == ["a", "a"]
        assert process.outcomes() == {"done": 2, "duplicate": 2}


@virtual
async def test_a_duplicate_that_comes_while_the_first_one_runs_waits_for_its_end() -> None:
    """Rule 9."""
    gate, executed = Gate(), 0

    @on("Placed")
    async def accept(order: Placed) -> None:
        nonlocal executed
        executed += 1
        await gate.pass_through("it")

    async with bench() as it:
        process = await it.start(accept)
        (record,) = await it.emit(Placed(order="a"))
        await it.until(lambda: gate.waiting)
        await it.publish(record)
        await it.pass_time(1)
        gate.open()
        await it.settle()

        assert executed == 1
        assert process.outcomes() == {"done": 1, "duplicate": 1}


@virtual
async def test_a_duplicate_of_a_parked_event_is_one_too() -> None:
    """Rules 7 and 9: it is no further attempt, and does not get in twice."""
    attempts: list[int] = []

    @on("Placed", retry=Retry(attempts=3, first_delay=timedelta(seconds=10), jitter=0))
    async def accept(order: Placed, context: Context) -> None:
        attempts.append(context.attempt)
        if context.attempt == 1:
            raise ValueError("flaky")
        context.write(WRITE, "accept", order.order)

    async with bench() as it:
        process = await it.start(accept)
        (record,) = await it.emit(Placed(order="a"))
        await it.settle()
        await it.publish(record)
        await it.pass_time(20)

        assert attempts == [1, 2]
        assert await it.effects() == ["a"]
        assert process.outcomes() == {"retry": 1, "duplicate": 1, "done": 1}


@virtual
async def test_each_handler_has_a_claim_of_its_own() -> None:
    """Rule 9: a claim is (service, handler, digest of source and id)."""

    @on("Placed")
    async def first(order: Placed, context: Context) -> None:
        context.write(WRITE, "first", order.order)

    @on("Placed")
    async def second(order: Placed, context: Context) -> None:
        context.write(WRITE, "second", order.order)

    async with bench() as it:
        process = await it.start(first)
        await it.emit(Placed(order="a"))
        await it.settle()
        await process.stop()
        store = await it.store()
        async with store._database.writing() as connection:
            connection.execute("update microflow_partitions set watermark = 0")
        await it.start(first, second)
        await it.settle()

        assert await it.effects(handler="first") == ["a"]
        assert await it.effects(handler="second") == ["a"]


@virtual
async def test_the_identity_of_a_handler_is_its_name_if_it_has_one() -> None:
    """Rules 9 and 12: a function may be renamed."""

    @on("Placed", name="accept")
    async def before(order: Placed, context: Context) -> None:
        context.write(WRITE, "accept", order.order)

    @on("Placed", name="accept")
    async def after(order: Placed, context: Context) -> None:
        context.write(WRITE, "accept", order.order)

    async with bench() as it:
        process = await it.start(before)
        (record,) = await it.emit(Placed(order="a"))
        await it.settle()
        await process.stop()
        second = await it.start(after)
        await it.publish(record)
        await it.settle()

        assert await it.effects() == ["a"]
        assert second.outcomes() == {"duplicate": 1}


@virtual
async def test_the_same_id_from_another_source_is_another_event() -> None:
    """Rule 9."""

    @on("Placed")
    async def accept(order: Placed, context: Context) -> None:
        context.write(WRITE, "accept", order.order)

    async with bench() as it:
        await it.start(accept)
        record = it.record(Placed(order="a"))
        headers = tuple((name, b"/elsewhere" if name == "ce_source" else value) for name, value in record.headers)
        await it.publish(record, Record("Placed", 0, record.key, record.value, headers))
        await it.settle()

        assert await it.effects() == ["a", "a"]


@virtual
async def test_the_same_id_with_other_bytes_is_a_duplicate_that_is_counted_as_diverged() -> None:
    """Rule 10: "counted as `diverged`, never quarantined": in one batch, and later."""

    @on("Placed")
    async def accept(order: Placed, context: Context) -> None:
        context.write(WRITE, "accept", str(order.number))

    async with bench() as it:
        process = await it.start(accept)
        record = it.record(Placed(order="a", number=1))
        other = Record("Placed", 0, record.key, b'{"order":"a","number":2}', record.headers)
        await it.publish(record, record, other)
        await it.settle()
        await it.publish(other, record)
        await it.settle()

        assert await it.effects() == ["1"]
        assert [report.diverged for report in process.told("duplicate")] == [False, True, True, False]
        assert await it.dead_letters() == []


@virtual
async def test_a_record_without_an_id_has_one_by_its_place_however_often_it_is_read() -> None:
    """Rule 9: from cluster, topic incarnation, partition, offset."""
    ids: list[str] = []

    @on("Placed")
    async def accept(order: Placed, context: Context) -> Accepted:
        ids.append(context.event_id)
        context.write(WRITE, "accept", order.order)
        return Accepted(order=order.order)

    async with bench() as it:
        process = await it.start(accept)
        foreign = Record("Placed", 0, b"a", b'{"order":"a"}')
        await it.publish(foreign, foreign)  # two places, so two events
        await it.settle()
        assert await it.effects() == ["a", "a"]
        await process.crash()
        store = await it.store()
        async with store._database.writing() as connection:
            connection.execute("update microflow_partitions set watermark = 0")
            connection.execute("delete from microflow_inbox where offset = 1")
        await it.start(accept)
        await it.settle()

        assert len(ids) == 3
        assert ids[1] == ids[2] != ids[0]
        assert await it.effects() == ["a", "a", "a"]
        published = [dict(each.headers)["ce_id"] for each in await it.published("Accepted")]
        assert len(published) == 3
        assert published[1] == published[2]


@virtual
async def test_a_repeated_execution_derives_the_same_ids_and_another_decision_others() -> None:
    """Rule 10."""
    decision: list[type[Event]] = [Accepted, Accepted, Rejected]
    emitted: list[bytes] = []

    @on("Placed")
    async def accept(order: Placed, context: Context) -> tuple[Accepted | Rejected, Accepted]:
        chosen = decision.pop(0)
        assert issubclass(chosen, Accepted | Rejected)
        return chosen(order=order.order), Accepted(order=order.order)

    async with bench() as it:
        (record,) = await it.emit(Placed(order="a"))
        for _ in range(3):
            process = await it.start(accept)
            await it.settle()
            await process.crash()
            async with (await it.store())._database.writing() as connection:
                connection.execute("update microflow_partitions set watermark = 0")
                connection.execute("delete from microflow_inbox")
        emitted = [dict(each.headers)["ce_id"] for each in await it.published("Accepted")]
        rejected = [dict(each.headers)["ce_id"] for each in await it.published("Rejected")]

        assert len(emitted) == 5
        assert emitted[:2] == emitted[2:4]
        assert emitted[4] == emitted[0]  # the first of its type, this time
        assert rejected[0] not in emitted
        cause = UUID(dict(record.headers)["ce_id"].decode())
        assert {UUID(each.decode()).int >> 80 for each in emitted} == {cause.int >> 80}


@virtual
async def test_a_database_of_another_log_is_refused_and_both_are_named(tmp_path: Path) -> None:
    """Rule 11."""

    @on("Placed")
    async def accept(order: Placed) -> None: ...

    async with bench() as it:
        process = await it.start(accept)
        await process.stop()
        other = LocalTransport.open(tmp_path / "other.db", clock=it.clock, session_timeout=None)
        ids = {await it.log.topics.cluster_id(), await other.topics.cluster_id()}
        try:
            with pytest.raises(IdentityError) as refusal:
                await it.start(accept, transport=lambda _: other)
        finally:
            await other.close()

        assert all(each in str(refusal.value) for each in ids)
        assert it.processes == []


@virtual
async def test_another_database_for_the_same_group_is_refused_at_the_start_and_both_are_named(tmp_path: Path) -> None:
    """Rule 11: "the group's offset metadata remembers the database's id"."""

    @on("Placed")
    async def accept(order: Placed, context: Context) -> None:
        context.write(WRITE, "accept", order.order)

    async with bench() as it:
        process = await it.start(accept)
        await it.emit(Placed(order="a"))
        await it.settle()
        await it.pass_time(1)
        await process.stop()
        first = await (await it.store()).bind(await it.log.topics.cluster_id())
        await it._stores.pop("shop").close()

        with pytest.raises(IdentityError) as refusal:
            await it.start(accept)

        second = await (await it.store()).bind(await it.log.topics.cluster_id())
        assert first != second
        assert first in str(refusal.value)
        assert second in str(refusal.value)
        assert await (await it.store()).partitions.watermarks() == {}
