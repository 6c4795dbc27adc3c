"""The outbox: what was committed, in commit order, until the log has it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from microflow.conformance.scenarios import Scenarios
from microflow.conformance.stores.examples import NOW, SECOND, an_outbox_row, commit, raised
from microflow.conformance.stores.harness import Harness
from microflow.errors import RegistryChanged
from microflow.handlers import Trigger
from microflow.ports import Appended, Changes, OrderingKey, OutboxRow, OutboxStatus, Store

outbox: Scenarios[Harness] = Scenarios()

PATIENCE = 10.0


async def _append(store: Store, *rows: OutboxRow) -> Sequence[Appended]:
    async with store.transaction() as transaction:
        await transaction.fence({}, keys={OrderingKey(row.topic, row.key) for row in rows if row.key is not None})
        return await transaction.write(Changes(outbox=list(rows)))


async def _scan(store: Store, *, page: int = 500, **keywords: Any) -> list[list[bytes | None]]:
    async with store.outbox.scan(page=page, **keywords) as pages:
        return [[row.value for row in rows] async for rows in pages]


def _mine(number: int, publisher: int | None = 7, **keywords: Any) -> OutboxRow:
    return an_outbox_row(number, **keywords)._replace(publisher=publisher)


async def _all(store: Store, *, after: int = -1) -> list[OutboxRow]:
    return list(await store.outbox.pending(after=after, limit=10_000))


@outbox.add()
async def an_outbox_row_comes_back_as_it_was(harness: Harness) -> None:
    """An emitted event that is to be published."""
    store = await harness.open()
    rows = [
        an_outbox_row(1),
        an_outbox_row(2)._replace(key=None, value=None, headers=()),
        an_outbox_row(3)._replace(key=b"", value=b"", headers=(("ü", b"\x00\xff"), ("ü", b""), ("b", b"x" * 70_000))),
        an_outbox_row(4, key=b"another")._replace(publisher=2**63 - 1, partition=2**31 - 1),
    ]
    await commit(store, outbox=rows)

    found = await _all(store)

    assert [row._replace(position=-1) for row in found] == rows


@outbox.add()
async def crowded_topics_are_told_with_their_rows(harness: Harness) -> None:
    """The topics for which at least so many rows wait, and how many."""
    store = await harness.open()
    assert dict(await store.outbox.crowded(at_least=1)) == {}
    await commit(store, outbox=[an_outbox_row(number) for number in range(5)])
    await commit(store, outbox=[an_outbox_row(number, None, "receipts") for number in range(3)])

    assert dict(await store.outbox.crowded(at_least=6)) == {}
    assert dict(await store.outbox.crowded(at_least=5)) == {"payments": 5}
    assert dict(await store.outbox.crowded(at_least=3)) == {"payments": 5, "receipts": 3}
    rows = await _all(store)
    await store.outbox.delete([row.position for row in rows[:2]])
    assert dict(await store.outbox.crowded(at_least=3)) == {"payments": 3, "receipts": 3}
    assert dict(await store.outbox.crowded(at_least=4)) == {}


@outbox.add()
async def of_a_long_outbox_the_oldest_rows_are_counted(harness: Harness) -> None:
    """Ten times as many, so that it takes no longer than it may once a second."""
    store = await harness.open()
    await commit(store, outbox=[an_outbox_row(number) for number in range(25)])
    await commit(store, outbox=[an_outbox_row(number, None, "receipts") for number in range(9)])

    assert dict(await store.outbox.crowded(at_least=2)) == {"payments": 20}


@outbox.add()
async def positions_grow_in_commit_order(harness: Harness) -> None:
    """`position` is the store's: within a key it grows in commit order."""
    store = await harness.open()
    await commit(store, outbox=[an_outbox_row(number) for number in range(500)])
    await commit(store, outbox=[an_outbox_row(number) for number in range(500, 510)])

    found = await _all(store)

    assert [row.value for row in found] == [str(number).encode() for number in range(510)]
    positions = [row.position for row in found]
    assert positions == sorted(set(positions))


@outbox.add()
async def a_position_is_never_used_again(harness: Harness) -> None:
    """It grows: also when everything before it has been deleted."""
    store = await harness.open()
    await commit(store, outbox=[an_outbox_row(1)])
    (first,) = await _all(store)
    await store.outbox.delete([first.position])

    await commit(store, outbox=[an_outbox_row(2)])

    (second,) = await _all(store, after=first.position)
    assert second.value == b"2"


@outbox.add()
async def pending_gives_pages_behind_a_position(harness: Harness) -> None:
    """Rows behind a position, in order."""
    store = await harness.open()
    await commit(store, outbox=[an_outbox_row(number) for number in range(5)])
    first = await store.outbox.pending(after=-1, limit=2)

    second = await store.outbox.pending(after=first[-1].position, limit=9)

    assert [row.value for row in first] == [b"0", b"1"]
    assert [row.value for row in second] == [b"2", b"3", b"4"]


@outbox.add()
async def acknowledged_rows_are_deleted(harness: Harness) -> None:
    """Forget rows that the log has acknowledged. Rows that are gone already are no error."""
    store = await harness.open()
    await commit(store, outbox=[an_outbox_row(number) for number in range(4)])
    rows = await _all(store)

    await store.outbox.delete([rows[0].position, rows[2].position])
    await store.outbox.delete([rows[0].position, rows[3].position])
    await store.outbox.delete([])

    assert [row.value for row in await _all(store)] == [b"1"]


@outbox.add()
async def the_status_tells_how_much_waits_and_since_when(harness: Harness) -> None:
    """Pending, and the instant of the oldest."""
    store = await harness.open()
    assert await store.outbox.status() == OutboxStatus(0, None)

    await commit(store, outbox=[an_outbox_row(1), an_outbox_row(2)._replace(created_at=NOW + SECOND)])

    assert await store.outbox.status() == OutboxStatus(2, NOW)


@outbox.add(requires={"several_services"})
async def the_outbox_is_the_databases(harness: Harness) -> None:
    """It belongs to the database, not to one service."""
    payments, shipping = await harness.open("payments"), await harness.open("shipping")
    await commit(payments, outbox=[an_outbox_row(1)])
    await commit(shipping, outbox=[an_outbox_row(2)])

    found = await _all(payments)

    assert [row.value for row in found] == [b"1", b"2"]
    assert await _all(shipping) == found
    assert (await shipping.outbox.status()).pending == 2


@outbox.add()
async def a_shard_has_one_owner(harness: Harness) -> None:
    """A shard whose lease of somebody else runs beyond `now` is not given."""
    leases = (await harness.open()).outbox
    everything = frozenset(range(leases.shards))

    assert await leases.lease(owner="a", now=NOW, until=NOW + 5 * SECOND) == everything
    assert not await leases.lease(owner="b", now=NOW, until=NOW + 9 * SECOND)
    kept = await leases.lease(owner="a", now=NOW + SECOND, until=NOW + 6 * SECOND)
    assert kept
    assert not kept & await leases.lease(owner="b", now=NOW + 5.5 * SECOND, until=NOW + 9 * SECOND)
    assert await leases.lease(owner="b", now=NOW + 6 * SECOND, until=NOW + 10 * SECOND) == everything
    assert not await leases.lease(owner="a", now=NOW + 7 * SECOND, until=NOW + 20 * SECOND)


@outbox.add()
async def those_who_go_on_asking_share_the_shards_evenly(harness: Harness) -> None:
    """Those who go on asking come to share the shards evenly."""
    leases = (await harness.open()).outbox
    held: dict[str, frozenset[int]] = {}

    for second in range(4):
        now = NOW + second * SECOND
        for owner in "abc":
            held[owner] = await leases.lease(owner=owner, now=now, until=now + 5 * SECOND)

    assert frozenset().union(*held.values()) == frozenset(range(leases.shards))
    sizes = sorted(len(shards) for shards in held.values())
    assert sum(sizes) == leases.shards
    assert sizes[-1] - sizes[0] <= 1


@outbox.add()
async def leases_are_given_back_by_ending_them(harness: Harness) -> None:
    """`until=now` gives all back."""
    leases = (await harness.open()).outbox
    await leases.lease(owner="a", now=NOW, until=NOW + 5 * SECOND)

    await leases.lease(owner="a", now=NOW + SECOND, until=NOW + SECOND)

    shards = await leases.lease(owner="b", now=NOW + SECOND, until=NOW + 9 * SECOND)
    assert shards == frozenset(range(leases.shards))


@outbox.add()
async def a_lease_from_before_the_clock_was_set_back_does_not_count(harness: Harness) -> None:
    """One that ends later than the one that is asked for: else nobody would publish until the clock is there again."""
    leases = (await harness.open()).outbox
    everything = frozenset(range(leases.shards))
    await leases.lease(owner="a", now=NOW, until=NOW + 5 * SECOND)

    assert await leases.lease(owner="b", now=NOW - 3600 * SECOND, until=NOW - 3595 * SECOND) == everything
    assert not await leases.lease(owner="a", now=NOW - 3599 * SECOND, until=NOW - 3594 * SECOND)


@outbox.add(requires={"several_handles"})
async def of_two_who_ask_for_a_lease_at_once_one_gets_it(harness: Harness) -> None:
    """A shard has one owner, whoever asks at the same moment."""
    stores = {name: await harness.open() for name in "ab"}

    first, second = await asyncio.gather(
        *(store.outbox.lease(owner=name, now=NOW, until=NOW + SECOND) for name, store in stores.items())
    )

    assert not first & second
    assert first | second == frozenset(range(stores["a"].outbox.shards))


@outbox.add()
async def a_key_is_in_one_shard_always(harness: Harness) -> None:
    """Rows of some shards only, if these are named. A key is in one always."""
    store = await harness.open()
    rows = [an_outbox_row(number, key=str(number % 7).encode()) for number in range(70)]
    await commit(store, outbox=[*rows, an_outbox_row(70, key=None)])

    by_shard = [
        await store.outbox.pending(after=-1, limit=10_000, shards={shard}) for shard in range(store.outbox.shards)
    ]

    assert sum(len(found) for found in by_shard) == 71
    for key in range(7):
        assert sum(any(row.key == str(key).encode() for row in found) for found in by_shard) == 1
    assert await store.outbox.pending(after=-1, limit=10, shards=()) == []


@outbox.add()
async def a_write_says_where_each_row_stands(harness: Harness) -> None:
    """What became of each outbox row, in order."""
    store = await harness.open()
    rows = [an_outbox_row(number, key=str(number % 5).encode()) for number in range(50)]

    appended = [*await _append(store, *rows), *await _append(store, an_outbox_row(50, key=None))]

    assert [each.position for each in appended] == [row.position for row in await _all(store)]
    assert not any(each.has_publisher for each in appended)
    async with store.transaction() as transaction:
        assert len(await transaction.write(Changes())) == 0


@outbox.add()
async def a_publisher_is_kept_if_nobody_else_has_the_key_in_hand(harness: Harness) -> None:
    """A row keeps its `publisher` only if no row of that topic and key was there that has another one, or none."""
    store = await harness.open()

    async def kept(*rows: OutboxRow) -> list[bool]:
        return [each.has_publisher for each in await _append(store, *rows)]

    assert await kept(_mine(1), _mine(2), _mine(3, key=b"b"), _mine(4, key=None)) == [True] * 4
    assert await kept(_mine(5), _mine(6, key=b"c")) == [True, True]
    assert await kept(_mine(7, publisher=8), _mine(8, publisher=8, key=None), _mine(9, publisher=8, key=b"d")) == [
        False,
        True,
        True,
    ]
    assert await kept(_mine(10), _mine(11, key=b"b"), _mine(12, topic="refunds")) == [False, True, True]
    assert await kept(_mine(13, publisher=None, key=b"e")) == [False]
    assert await kept(_mine(14, key=b"e"), _mine(15, key=b"d")) == [False, False]

    found = {row.value: row.publisher for row in await _all(store)}
    assert [found[str(number).encode()] for number in (1, 5, 7, 8, 10, 13, 14)] == [7, 7, None, 8, None, None, None]
    await store.outbox.delete([row.position for row in await _all(store)])
    assert await kept(_mine(16), _mine(17, key=b"e")) == [True, True]


@outbox.add()
async def an_earlier_row_of_the_same_transaction_counts(harness: Harness) -> None:
    """No row of that topic and key was there: also none that a handler has appended before, by itself."""
    store = await harness.open()

    async with store.transaction() as transaction:
        await transaction.fence({}, keys={OrderingKey("payments", b"order-1")})
        await transaction.write(Changes(outbox=[an_outbox_row(1)]))
        appended = await transaction.write(Changes(outbox=[_mine(2), _mine(3, key=b"b")]))

    assert [each.has_publisher for each in appended] == [False, True]


@outbox.add()
async def many_rows_of_others_are_never_overlooked(harness: Harness) -> None:
    """However many others have in hand: it is kept only if nobody else has the key."""
    store = await harness.open()
    await _append(store, *(an_outbox_row(number, key=str(number).encode()) for number in range(1_500)))

    rows = [_mine(number, key=str(number % 1_500).encode()) for number in (0, 99, 100, 101, 777, 1_499)]

    assert not any(each.has_publisher for each in await _append(store, *rows))


@outbox.add()
async def a_scan_gives_everything_in_order_in_pages(harness: Harness) -> None:
    """All rows, or those of some shards, to publish: in pages of about so many, in order."""
    store = await harness.open()
    keys = [str(number % 7).encode() for number in range(100)]
    await _append(store, *(an_outbox_row(number, key=key) for number, key in enumerate(keys)))

    pages = await _scan(store, page=10)

    found = [value for page in pages for value in page]
    assert len(pages) >= 5
    assert sorted(found, key=lambda value: int(value or b"")) == [str(number).encode() for number in range(100)]
    for key in set(keys):
        of_key = [int(value or b"") for value in found if keys[int(value or b"")] == key]
        assert of_key == sorted(of_key)
    by_shard = [await _scan(store, shards={shard}) for shard in range(store.outbox.shards)]
    assert sum(len(page) for shard in by_shard for page in shard) == 100
    assert await _scan(store, shards=()) == []


@outbox.add()
async def a_scan_leaves_out_nothing_but_what_its_publisher_has_in_hand(harness: Harness) -> None:
    """Rows whose `publisher` is the one that is named may be left out, and no others."""
    store = await harness.open()
    await _append(store, _mine(1), _mine(2, publisher=8, key=b"b"), an_outbox_row(3, key=b"c"), _mine(4, key=None))

    left = {publisher: await _scan(store, publisher=publisher) for publisher in (7, 9, None)}
    found = {publisher: {value for page in pages for value in page} for publisher, pages in left.items()}
    assert found[7] >= {b"2", b"3"}
    assert found[9] == found[None] == {b"1", b"2", b"3", b"4"}


@outbox.add()
async def a_scan_goes_on_while_rows_are_deleted_and_appended(harness: Harness) -> None:
    """Whoever has come to a row has passed every earlier row of its key, whatever happens meanwhile."""
    store = await harness.open()
    await _append(store, *(an_outbox_row(number) for number in range(10)))
    seen: list[int] = []

    async with store.outbox.scan(page=3) as pages:
        async for rows in pages:
            seen += [int(row.value or b"") for row in rows]
            await store.outbox.delete([row.position for row in rows])
            await _append(store, an_outbox_row(100 + len(seen)))

    assert seen == sorted(seen)
    assert seen[:10] == list(range(10))


@outbox.add(requires={"writers_at_once"})
async def a_row_that_was_committed_late_is_not_overtaken_within_a_scan(harness: Harness) -> None:
    """Whoever has come to a row has passed every earlier row of its key, also one that was committed late under a low
    position."""
    store, other = await harness.open(), await harness.open()
    late = store.transaction()
    transaction = await late.__aenter__()
    await transaction.fence({}, keys={OrderingKey("payments", b"a")})
    await transaction.write(Changes(outbox=[an_outbox_row(1, key=b"a")]))
    await _append(other, *(an_outbox_row(number, key=b"b") for number in (2, 3, 4)))
    seen: list[bytes | None] = []

    async with other.outbox.scan(page=1) as pages:
        async for rows in pages:
            seen += [row.value for row in rows]
            if seen == [b"2"]:
                await late.__aexit__(None, None, None)
                await _append(other, an_outbox_row(5, key=b"a"))

    assert seen[:3] == [b"2", b"3", b"4"]
    assert b"5" not in seen or b"1" in seen[: seen.index(b"5")]
    assert sorted(value or b"" for page in await _scan(other) for value in page) == [b"1", b"2", b"3", b"4", b"5"]


@outbox.add(requires={"writers_at_once"})
async def a_row_that_is_committed_after_later_ones_were_deleted_is_found(harness: Harness) -> None:
    """All rows: however long ago those with higher positions were published and deleted."""
    store, other = await harness.open(), await harness.open()
    late = store.transaction()
    transaction = await late.__aenter__()
    await transaction.fence({}, keys={OrderingKey("payments", b"a")})
    await transaction.write(Changes(outbox=[an_outbox_row(1, key=b"a")]))
    for _ in range(5):
        await _append(other, *(an_outbox_row(0, key=b"b") for _ in range(1_000)))
        await other.outbox.delete([row.position for row in await _all(other)])
        assert await _scan(other) == []

    await late.__aexit__(None, None, None)

    assert [kept.has_publisher for kept in await _append(other, _mine(2, key=b"a"), _mine(3, key=b"c"))] == [
        False,
        True,
    ]
    assert await _scan(other) == [[b"1", b"2", b"3"]]
    assert (await other.outbox.status()).pending == 3


@outbox.add()
async def a_waiting_relay_is_woken_in_a_while_by_rows_that_have_a_publisher(harness: Harness) -> None:
    """For rows that have a publisher, a second or two later is soon enough: it may have died."""
    store = await harness.open()
    await commit(store, outbox=[an_outbox_row(0)])
    await asyncio.wait_for(store.outbox.changed(), PATIENCE)

    await commit(store, outbox=[_mine(1, key=b"b")])

    await asyncio.wait_for(store.outbox.changed(), PATIENCE)


@outbox.add()
async def a_waiting_relay_is_woken_by_a_commit(harness: Harness) -> None:
    """Return soon after anybody, in this process …, has committed rows since the last call returned."""
    store = await harness.open()
    await commit(store, outbox=[an_outbox_row(0)])
    await asyncio.wait_for(store.outbox.changed(), PATIENCE)
    waiting = asyncio.create_task(store.outbox.changed())
    await asyncio.wait([waiting], timeout=0.05)
    assert not waiting.done()

    await commit(store, outbox=[an_outbox_row(1)])

    await asyncio.wait_for(waiting, PATIENCE)


@outbox.add()
async def a_commit_while_nobody_waits_is_not_missed(harness: Harness) -> None:
    """… since the last call returned."""
    store = await harness.open()
    await commit(store, outbox=[an_outbox_row(0)])
    await asyncio.wait_for(store.outbox.changed(), PATIENCE)

    await commit(store, outbox=[an_outbox_row(1)])

    await asyncio.wait_for(store.outbox.changed(), PATIENCE)


@outbox.add(requires={"several_handles"})
async def a_waiting_relay_is_woken_by_another_handles_commit(harness: Harness) -> None:
    """… or another, has committed rows."""
    store, other = await harness.open(), await harness.open()
    await commit(store, outbox=[an_outbox_row(0)])
    await asyncio.wait_for(store.outbox.changed(), PATIENCE)
    waiting = asyncio.create_task(store.outbox.changed())
    await asyncio.wait([waiting], timeout=0.05)

    await commit(other, outbox=[an_outbox_row(1)])

    await asyncio.wait_for(waiting, PATIENCE)
    assert [row.value for row in await _all(store)] == [b"0", b"1"]


@outbox.add(requires={"several_handles"})
async def rows_of_two_handles_at_once_all_arrive_in_order(harness: Harness) -> None:
    """Within a key it grows in commit order, whoever commits."""
    stores = [await harness.open(), await harness.open()]

    async def emit(handle: int) -> None:
        for number in range(30):
            await commit(stores[handle], outbox=[an_outbox_row(number, key=str(handle).encode())])

    await asyncio.gather(emit(0), emit(1))

    found = await _all(stores[0])
    for handle in (b"0", b"1"):
        assert [row.value for row in found if row.key == handle] == [str(number).encode() for number in range(30)]


@outbox.add()
async def the_number_of_partitions_that_was_found_first_is_used(harness: Harness) -> None:
    """What is remembered, else what was found, which is now (rule 8)."""
    store = await harness.open()

    assert dict(await store.outbox.partition_counts({"orders": 6, "payments": 3})) == {"orders": 6, "payments": 3}
    assert dict(await store.outbox.partition_counts({"orders": 12, "refunds": 1})) == {"orders": 6, "refunds": 1}
    assert dict(await store.outbox.partition_counts({"orders": 2})) == {"orders": 6}
    assert dict(await store.outbox.partition_counts({})) == {}


@outbox.add()
async def another_number_of_partitions_is_used_once_it_was_switched_to(harness: Harness) -> None:
    """Use another number of a topic's partitions once the block has ended; gives how many rows are pending (rule 8)."""
    store = await harness.open()
    await store.outbox.partition_counts({"payments": 6})
    await commit(store, outbox=[an_outbox_row(1), an_outbox_row(2), an_outbox_row(3, topic="refunds")])

    async with store.outbox.switching("payments", partitions=12) as pending:
        pass
    async with store.outbox.switching("orders", partitions=4) as nothing:
        pass

    assert (pending, nothing) == (2, 0)
    assert dict(await store.outbox.partition_counts({"payments": 24, "orders": 9})) == {"payments": 12, "orders": 4}


@outbox.add()
async def nothing_is_switched_if_the_block_raises(harness: Harness) -> None:
    """Nothing changes if it raises."""
    store = await harness.open()
    await store.outbox.partition_counts({"payments": 6})

    async def fail() -> None:
        async with store.outbox.switching("payments", partitions=12):
            raise KeyError

    await raised(KeyError, fail)

    assert dict(await store.outbox.partition_counts({"payments": 12})) == {"payments": 6}


@outbox.add(requires={"several_handles"})
async def a_switch_waits_for_open_transactions_and_those_who_do_not_know_of_it_are_refused(harness: Harness) -> None:
    """Whoever commits rows knows how many partitions are used (rule 8)."""
    store, other = await harness.open(), await harness.open()
    registered = await store.handlers.register(
        {"ship": [Trigger("OrderAccepted", "orders")]}, owner="me", now=NOW, until=NOW
    )
    happened: list[str] = []

    async def switch() -> None:
        async with other.outbox.switching("payments", partitions=12) as pending:
            happened.append(f"switched with {pending} pending")

    async with store.transaction() as transaction:
        await transaction.fence({}, registry=registered.version)
        switching = asyncio.create_task(switch())
        await asyncio.wait([switching], timeout=0.1)
        await transaction.write(Changes(outbox=[an_outbox_row(1)]))
        happened.append("written")
    await switching

    async def commit_without_knowing() -> None:
        async with store.transaction() as transaction:
            await transaction.fence({}, registry=registered.version)

    assert happened == ["written", "switched with 1 pending"]
    await raised(RegistryChanged, commit_without_knowing)
