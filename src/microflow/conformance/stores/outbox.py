"""The outbox: what was committed, in commit order, until the log has it."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from microflow.conformance.scenarios import Scenarios
from microflow.conformance.stores.examples import NOW, SECOND, an_outbox_row, commit
from microflow.conformance.stores.harness import Harness
from microflow.ports import OutboxRow, OutboxStatus, Store

outbox: Scenarios[Harness] = Scenarios()

PATIENCE = 10.0


async def _all(store: Store, *, after: int = -1) -> list[OutboxRow]:
    return list(await store.outbox.pending(after=after, limit=10_000))


@outbox.add()
async def an_outbox_row_comes_back_as_it_was(harness: Harness) -> None:
    """An emitted event that is to be published."""
    store = await harness.open()
    rows = [
        an_outbox_row(1),
        replace(an_outbox_row(2), key=None, value=None, headers=()),
        replace(an_outbox_row(3), key=b"", value=b"", headers=(("ü", b"\x00\xff"), ("ü", b""), ("b", b"x" * 70_000))),
    ]
    await commit(store, outbox=rows)

    found = await _all(store)

    assert [replace(row, position=-1) for row in found] == rows


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

    await commit(store, outbox=[an_outbox_row(1), replace(an_outbox_row(2), created_at=NOW + SECOND)])

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
