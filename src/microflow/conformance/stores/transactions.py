"""One atomic step: all of it is committed, or none, and never under an old epoch."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from microflow.conformance.scenarios import Scenarios
from microflow.conformance.stores.examples import (
    NOW,
    ORDERS,
    SECOND,
    a_claim,
    a_key,
    a_letter,
    an_outbox_row,
    commit,
    parked,
    raised,
)
from microflow.conformance.stores.harness import Harness
from microflow.errors import Fenced, StoreError
from microflow.ports import Changes, Store, TopicPartition

transactions: Scenarios[Harness] = Scenarios()


async def _write_everything(store: Store) -> None:
    async with store.transaction() as transaction:
        claims = [a_claim(1), a_claim(2, status="parked"), a_claim(3, status="dead")]
        assert list(await transaction.claim(claims, now=NOW)) == [True, True, True]
        await transaction.connection.execute("insert into receipts values ($1)", "r1")
        await transaction.write(Changes([parked(2)], [a_letter(3)], [an_outbox_row(1), an_outbox_row(2)], {ORDERS: 4}))


async def _fence(store: Store, epochs: Mapping[TopicPartition, int]) -> None:
    async with store.transaction() as transaction:
        await transaction.fence(epochs)


async def _what_is_there(store: Store) -> list[object]:
    async with store.transaction() as transaction:
        receipts = await transaction.connection.fetchval("select count(*) from receipts")
    return [
        len(await store.inbox.seen([a_key(1), a_key(2), a_key(3)])),
        await store.parking.count(),
        len(await store.dead_letters.list()),
        (await store.outbox.status()).pending,
        dict(await store.partitions.watermarks()),
        receipts,
    ]


async def _prepared(store: Store) -> Store:
    async with store.transaction() as transaction:
        await transaction.connection.execute("create table receipts (id text)")
    await store.partitions.take([ORDERS], owner="me")
    return store


@transactions.add()
async def everything_of_a_transaction_is_committed_together(harness: Harness) -> None:
    """One atomic step: all of it is committed."""
    store = await _prepared(await harness.open())

    await _write_everything(store)

    assert await _what_is_there(store) == [3, 1, 1, 2, {ORDERS: 4}, 1]


@transactions.add()
async def nothing_of_a_transaction_that_raises_is_there(harness: Harness) -> None:
    """… or none."""
    store = await _prepared(await harness.open())

    try:
        async with store.transaction() as transaction:
            await transaction.claim([a_claim(1), a_claim(2, status="parked")], now=NOW)
            await transaction.connection.execute("insert into receipts values ($1)", "r1")
            await transaction.write(Changes([parked(2)], [a_letter(3)], [an_outbox_row(1)], {ORDERS: 4}))
            raise RuntimeError
    except RuntimeError:
        pass

    assert await _what_is_there(store) == [0, 0, 0, 0, {}, 0]
    await _write_everything(store)
    assert await _what_is_there(store) == [3, 1, 1, 2, {ORDERS: 4}, 1]


@transactions.add()
async def a_cancelled_transaction_is_rolled_back_and_the_store_stays_usable(harness: Harness) -> None:
    """Roll back when it raises: a cancellation too."""
    store = await _prepared(await harness.open())
    inside = asyncio.Event()

    async def wait_inside() -> None:
        async with store.transaction() as transaction:
            await transaction.claim([a_claim(1)], now=NOW)
            await transaction.connection.execute("insert into receipts values ($1)", "r1")
            inside.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(wait_inside())
    await inside.wait()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)

    assert await _what_is_there(store) == [0, 0, 0, 0, {}, 0]
    assert list(await commit(store, [a_claim(1)])) == [True]


@transactions.add()
async def names_that_were_new_in_a_rolled_back_transaction_are_new_again(harness: Harness) -> None:
    """Nothing is remembered of a transaction that was not committed."""
    store = await harness.open()
    try:
        async with store.transaction() as transaction:
            await transaction.claim([a_claim(1, "first"), a_claim(1, "second")], now=NOW)
            raise RuntimeError
    except RuntimeError:
        pass

    await commit(store, [a_claim(1, "second")])

    assert set(await store.inbox.seen([a_key(1, "first"), a_key(1, "second")])) == {a_key(1, "second")}


@transactions.add()
async def a_connection_is_of_no_use_when_its_transaction_has_ended(harness: Harness) -> None:
    """Usable from `claim` to `write`."""
    store = await harness.open()
    async with store.transaction() as transaction:
        connection = transaction.connection

    await raised(StoreError, lambda: connection.execute("create table receipts (id text)"))


@transactions.add()
async def epochs_grow_with_every_owner(harness: Harness) -> None:
    """Begin a new epoch for each partition; its watermark is None until one is stored."""
    store = await harness.open()
    other = TopicPartition("orders", 1)

    first = await store.partitions.take([ORDERS, other], owner="me")
    await commit(store, watermarks={ORDERS: 7})
    second = await store.partitions.take([ORDERS], owner="me")
    third = await store.partitions.take([ORDERS, other], owner="you")

    assert [first[ORDERS].watermark, second[ORDERS].watermark, third[other].watermark] == [None, 7, None]
    assert first[ORDERS].epoch < second[ORDERS].epoch < third[ORDERS].epoch
    assert first[other].epoch < third[other].epoch


@transactions.add()
async def a_transaction_under_an_old_epoch_is_fenced(harness: Harness) -> None:
    """Raise Fenced unless each epoch is the partition's current one."""
    store = await harness.open()
    other = TopicPartition("orders", 1)
    epochs = {
        partition: ownership.epoch
        for partition, ownership in (await store.partitions.take([ORDERS, other], owner="me")).items()
    }
    await store.partitions.take([other], owner="you")

    error = await raised(Fenced, lambda: _fence(store, epochs))

    assert error.partitions == {other}
    await _fence(store, {ORDERS: epochs[ORDERS]})


@transactions.add()
async def a_partition_nobody_has_taken_is_fenced(harness: Harness) -> None:
    """Raise Fenced unless each epoch is the partition's current one: there is none."""
    store = await harness.open()

    error = await raised(Fenced, lambda: _fence(store, {ORDERS: 1}))

    assert error.partitions == {ORDERS}


@transactions.add(requires={"several_handles"})
async def taking_a_partition_waits_for_the_transaction_that_fenced_it(harness: Harness) -> None:
    """… and keep it so until the transaction ends: what the old owner commits, the new one finds."""
    old, new = await harness.open(), await harness.open()
    epoch = (await old.partitions.take([ORDERS], owner="old"))[ORDERS].epoch
    happened: list[str] = []

    async def take() -> int | None:
        ownership = (await new.partitions.take([ORDERS], owner="new"))[ORDERS]
        happened.append("taken")
        return ownership.watermark

    async with old.transaction() as transaction:
        await transaction.fence({ORDERS: epoch})
        taking = asyncio.create_task(take())
        await asyncio.wait([taking], timeout=0.1)
        await transaction.write(Changes(watermarks={ORDERS: 5}))
        happened.append("written")

    assert await taking == 5
    assert happened == ["written", "taken"]
    await raised(Fenced, lambda: _fence(old, {ORDERS: epoch}))


@transactions.add()
async def a_stored_watermark_never_goes_back(harness: Harness) -> None:
    """Next offset to read, per partition. A stored one never goes back."""
    store = await harness.open()
    other = TopicPartition("orders", 1)

    await commit(store, watermarks={ORDERS: 9, other: 0})
    await commit(store, watermarks={ORDERS: 8})
    await commit(store, watermarks={other: 3})

    assert dict(await store.partitions.watermarks()) == {ORDERS: 9, other: 3}
    assert (await store.partitions.take([ORDERS], owner="me"))[ORDERS].watermark == 9


@transactions.add(requires={"several_services"})
async def services_of_one_database_know_nothing_of_each_other(harness: Harness) -> None:
    """Every table of ours is keyed by service."""
    payments, shipping = await harness.open("payments"), await harness.open("shipping")
    epoch = (await payments.partitions.take([ORDERS], owner="me"))[ORDERS].epoch
    await shipping.partitions.take([ORDERS], owner="you")
    await commit(payments, [a_claim(1), a_claim(2, status="parked")], parked=[parked(2)], watermarks={ORDERS: 3})
    await commit(payments, [a_claim(3, status="dead")], dead_letters=[a_letter(3)])

    async with payments.transaction() as transaction:
        await transaction.fence({ORDERS: epoch})
    granted = await commit(shipping, [a_claim(1), a_claim(2), a_claim(2, resumes=True)])
    (letter,) = await payments.dead_letters.list()

    assert list(granted) == [True, True, False]
    assert dict(await shipping.partitions.watermarks()) == {}
    assert await shipping.parking.count() == 0
    assert list(await shipping.parking.due([ORDERS], now=NOW + SECOND, limit=9)) == []
    assert list(await shipping.dead_letters.list()) == []
    assert await shipping.dead_letters.get(letter.id) is None
    assert await shipping.dead_letters.redrive([letter.id], now=NOW) == frozenset()
    assert await shipping.dead_letters.purge(failed_before=NOW + SECOND, limit=9) == 0


@transactions.add()
async def the_probe_commits_while_nothing_is_wrong(harness: Harness) -> None:
    """Commit a write of 64 KiB on a fresh connection."""
    store = await harness.open()

    await store.probe()
    await store.probe()


@transactions.add()
async def the_databases_time_is_aware_and_does_not_stand(harness: Harness) -> None:
    """The database's own clock, in UTC and aware."""
    store = await harness.open()

    first = await store.time()
    await asyncio.sleep(0.01)
    second = await store.time()

    assert first.utcoffset() == second.utcoffset() == SECOND * 0
    assert first < second


@transactions.add()
async def a_store_has_at_least_one_lane(harness: Harness) -> None:
    """How many transactions at once are worth having."""
    store = await harness.open()

    assert store.lanes >= 1
