"""Owners of partitions: how they leave, and what they had in hand when they did not."""

from __future__ import annotations

import asyncio
from functools import partial

from microflow.conformance.scenarios import Scenarios
from microflow.conformance.stores.examples import NOW, ORDERS, a_claim, commit, raised
from microflow.conformance.stores.harness import Harness
from microflow.errors import Fenced
from microflow.handlers import Trigger
from microflow.ports import Beginning, Changes, Mark, Owner, Ownership, Registry, Store, TopicPartition

ownership: Scenarios[Harness] = Scenarios()

OTHER = TopicPartition("orders", 1)
SEVENTH = Mark(ORDERS, 0, 7)


async def _take(store: Store, partition: TopicPartition = ORDERS, *, owner: str = "me") -> Ownership:
    return (await store.partitions.take([partition], owner=owner))[partition]


async def _release(store: Store, epoch: int, *, careful_until: int | None = None) -> None:
    until = {} if careful_until is None else {ORDERS: careful_until}
    await store.partitions.release({ORDERS: epoch}, careful_until=until)


async def _crashes(store: Store, mark: Mark = SEVENTH) -> int | None:
    return (await store.suspects.known([mark.home])).get(mark)


async def _die_with(store: Store, mark: Mark = SEVENTH) -> None:
    """Own the mark's partition, have its event in hand, and say nothing more."""
    await store.suspects.mark(mark, epoch=(await _take(store, mark.home)).epoch)


@ownership.add()
async def a_partition_that_nobody_had_was_left_clean(harness: Harness) -> None:
    """`clean`: nobody had it before."""
    store = await harness.open()

    assert await _take(store) == Ownership(1, None, clean=True)
    assert await _take(store) == Ownership(2, None, clean=False)


@ownership.add()
async def a_partition_is_known_before_it_is_owned_and_was_left_clean(harness: Harness) -> None:
    """`clean`: nobody had it before, although a claim names it."""
    store = await harness.open()
    await commit(store, [a_claim(1)])

    assert (await _take(store)).clean


@ownership.add()
async def who_releases_a_partition_has_left_in_good_order(harness: Harness) -> None:
    """Say that their owner leaves partitions in good order."""
    store = await harness.open()
    first = await _take(store)

    await _release(store, first.epoch)

    assert await _take(store, owner="another") == Ownership(first.epoch + 1, None, clean=True)
    assert not (await _take(store)).clean, "it holds for one owner"


@ownership.add()
async def a_release_of_an_epoch_that_is_over_says_nothing(harness: Harness) -> None:
    """Those whose epoch is over are passed over."""
    store = await harness.open()
    first = await _take(store)
    await _take(store, owner="another")

    await store.partitions.release({ORDERS: first.epoch, OTHER: 1}, careful_until={})

    assert not (await _take(store)).clean
    assert (await _take(store, OTHER)).clean


@ownership.add()
async def a_release_keeps_the_epoch_and_the_watermark(harness: Harness) -> None:
    """A release ends nothing: whoever is still in a transaction may commit it."""
    store = await harness.open()
    epoch = (await _take(store)).epoch
    await _release(store, epoch)

    async with store.transaction() as transaction:
        await transaction.fence({ORDERS: epoch})
        await transaction.write(Changes(watermarks={ORDERS: 5}))

    assert await _take(store) == Ownership(epoch + 1, 5, clean=True)


@ownership.add()
async def the_next_owner_has_to_be_as_careful_as_the_one_before(harness: Harness) -> None:
    """Up to the offset of `careful_until` the next owner has to be as careful as this one was."""
    store = await harness.open()
    first = await _take(store)
    await _release(store, first.epoch, careful_until=40)

    second = await _take(store)
    third = await _take(store)
    await _release(store, third.epoch)

    assert (second.clean, second.careful_until) == (False, 40)
    assert (third.clean, third.careful_until) == (False, None)
    assert (await _take(store)).clean


@ownership.add()
async def a_mark_outlives_its_process_and_counts_one_crash(harness: Harness) -> None:
    """Marks that are found count one crash each for their events."""
    store, again = await harness.open(), await harness.open()
    await _die_with(store)
    assert await _crashes(again) == 0

    await _take(again)

    assert await _crashes(again) == 1
    await _take(again)
    assert await _crashes(again) == 1, "it was not in hand any more"


@ownership.add()
async def crashes_add_up_over_owners(harness: Harness) -> None:
    """… counted for its event."""
    store = await harness.open()

    for _ in range(3):
        await _die_with(store)
    await _take(store)

    assert await _crashes(store) == 3


@ownership.add()
async def who_releases_a_partition_was_not_killed_by_what_it_had_in_hand(harness: Harness) -> None:
    """… unless the owner before has released the partition, careful or not."""
    store = await harness.open()
    for careful_until in (None, 40):
        epoch = (await _take(store)).epoch
        await store.suspects.mark(SEVENTH, epoch=epoch)
        await _release(store, epoch, careful_until=careful_until)

    await _take(store)
    await _take(store)

    assert await _crashes(store) == 0


@ownership.add()
async def a_mark_under_an_old_epoch_is_refused(harness: Harness) -> None:
    """Raises Fenced unless the epoch is the current one of the mark's home."""
    store = await harness.open()
    epoch = (await _take(store)).epoch
    await _take(store, owner="another")

    fenced = await raised(Fenced, lambda: store.suspects.mark(SEVENTH, epoch=epoch))
    await raised(Fenced, lambda: store.suspects.mark(Mark(OTHER, 1, 7), epoch=1))

    assert fenced.partitions == {ORDERS}
    assert await _crashes(store) is None


@ownership.add()
async def a_mark_is_cleared_with_the_end_of_its_event(harness: Harness) -> None:
    """Marks of events that have come to their end, with the crashes that were counted for them."""
    store = await harness.open()
    other = Mark(ORDERS, 3, 7)  # its record stands in another partition of the topic
    await _die_with(store, other)
    await _die_with(store)
    epoch = (await _take(store)).epoch
    await store.suspects.mark(SEVENTH, epoch=epoch)

    async with store.transaction() as transaction:
        await transaction.fence({ORDERS: epoch})
        await transaction.claim([a_claim(7)], now=NOW)
        await transaction.write(Changes(cleared=[SEVENTH]))

    assert await store.suspects.known([ORDERS, OTHER]) == {other: 1}


@ownership.add()
async def a_mark_stays_with_what_is_rolled_back(harness: Harness) -> None:
    """All of it is committed, or none."""
    store = await harness.open()
    await _die_with(store)

    try:
        async with store.transaction() as transaction:
            await transaction.write(Changes(cleared=[SEVENTH]))
            raise ZeroDivisionError
    except ZeroDivisionError:
        pass

    assert await _crashes(store) == 0


@ownership.add(requires={"several_services"})
async def every_service_has_marks_of_its_own(harness: Harness) -> None:
    """Every table of ours is keyed by service."""
    payments, shipping = await harness.open("payments"), await harness.open("shipping")
    await _die_with(payments)
    epoch = (await _take(shipping)).epoch

    await _release(shipping, epoch)

    assert await shipping.suspects.known([ORDERS]) == {}
    assert not (await _take(payments)).clean
    assert await _crashes(payments) == 1


@ownership.add()
async def the_owners_are_those_who_began_the_current_epochs_and_have_not_released_them(harness: Harness) -> None:
    """Whoever began the current epoch of each partition that was ever owned."""
    store = await harness.open()
    await commit(store, [a_claim(1)])
    assert dict(await store.partitions.owners()) == {}
    await _take(store, owner="before")
    mine = await _take(store)
    theirs = await _take(store, OTHER, owner="another")

    assert dict(await store.partitions.owners()) == {
        ORDERS: Owner(mine.epoch, "me"),
        OTHER: Owner(theirs.epoch, "another"),
    }
    await _release(store, mine.epoch)
    assert (await store.partitions.owners())[ORDERS] == Owner(mine.epoch, None)
    again = await _take(store)
    assert (await store.partitions.owners())[ORDERS] == Owner(again.epoch, "me")


@ownership.add()
async def nothing_is_taken_unless_what_was_seen_is_so_still(harness: Harness) -> None:
    """Nothing is taken, and nothing returned, unless the partitions of `unchanged` have these epochs."""
    store = await harness.open()
    seen = (await _take(store)).epoch
    take = partial(store.partitions.take, [OTHER], owner="me")

    assert await take(unchanged={ORDERS: seen + 1}) == {}
    assert await take(unchanged={ORDERS: seen, OTHER: 1}) == {}
    assert OTHER not in await store.partitions.owners()
    assert (await take(unchanged={ORDERS: seen, OTHER: 0}))[OTHER].epoch == 1
    assert await take(unchanged={ORDERS: seen, OTHER: 0}) == {}
    await _take(store)
    assert await take(unchanged={ORDERS: seen, OTHER: 1}) == {}
    assert (await store.partitions.owners())[OTHER] == Owner(1, "me")


@ownership.add(requires={"several_handles"})
async def of_those_who_have_seen_the_same_one_takes(harness: Harness) -> None:
    """… which they keep while this is done."""
    stores = [await harness.open() for _ in range(4)]

    taken = await asyncio.gather(
        *(
            store.partitions.take([OTHER], owner=str(number), unchanged={ORDERS: 0, OTHER: 0})
            for number, store in enumerate(stores)
        )
    )

    assert sorted(len(each) for each in taken) == [0, 0, 0, 1]


@ownership.add()
async def a_beginning_sets_a_watermark_back_and_remembers_the_incarnation(harness: Harness) -> None:
    """Their watermark is set, back if need be (semantics 9, 13)."""
    store = await harness.open()
    epoch = (await _take(store)).epoch
    await _begin(store, epoch, Beginning(7, "first"))

    async with store.transaction() as transaction:
        await transaction.fence({ORDERS: epoch})
        await transaction.write(Changes(watermarks={ORDERS: 40}))
    grown = await _take(store)
    await _begin(store, grown.epoch, Beginning(0, "second"))
    anew = await _take(store)
    async with store.transaction() as transaction:
        await transaction.fence({ORDERS: anew.epoch})
        await transaction.write(Changes(watermarks={ORDERS: 3}))

    assert (grown.watermark, grown.incarnation) == (40, "first")
    assert (anew.watermark, anew.incarnation) == (0, "second")
    assert await store.partitions.watermarks() == {ORDERS: 3}
    assert await store.partitions.incarnations() == {ORDERS: "second"}
    assert await (await harness.open("shipping")).partitions.incarnations() == {}


@ownership.add()
async def a_partition_that_never_began_has_no_incarnation(harness: Harness) -> None:
    """`incarnation` is that of its last beginning; None if there was none."""
    store = await harness.open()
    epoch = (await _take(store)).epoch

    async with store.transaction() as transaction:
        await transaction.fence({ORDERS: epoch})
        await transaction.write(Changes(watermarks={ORDERS: 5}))

    assert (await _take(store)).incarnation is None
    assert await store.partitions.incarnations() == {}


@ownership.add()
async def an_owner_that_is_none_any_more_begins_nothing(harness: Harness) -> None:
    """A beginning is part of a transaction, and fenced like all of it."""
    store = await harness.open()
    old = (await _take(store)).epoch
    new = await _take(store, owner="another")
    await _begin(store, new.epoch, Beginning(7, "first"))

    await raised(Fenced, lambda: _begin(store, old, Beginning(0, "second")))

    again = await _take(store)
    assert (again.watermark, again.incarnation) == (7, "first")


@ownership.add()
async def a_handler_is_read_from_where_a_partition_begins_anew(harness: Harness) -> None:
    """A handler that was registered to be read from further on is read from there, and everybody learns of it."""
    store = await harness.open()
    epochs = {ORDERS: (await _take(store)).epoch, OTHER: (await _take(store, OTHER)).epoch}
    async with store.transaction() as transaction:
        await transaction.fence(epochs)
        await transaction.write(Changes(watermarks={ORDERS: 100, OTHER: 100}))
    trigger = Trigger("OrderAccepted", ORDERS.topic)
    before = await _register(store, trigger)

    async with store.transaction() as transaction:
        await transaction.fence(epochs)
        beginnings = {ORDERS: Beginning(10, "second"), OTHER: Beginning(120, "first")}
        await transaction.write(Changes(beginnings=beginnings))
    after = await _register(store, trigger)

    assert before.handlers["late"].triggers == {trigger: {ORDERS.partition: 100, OTHER.partition: 100}}
    assert after.handlers["late"].triggers == {trigger: {ORDERS.partition: 10, OTHER.partition: 100}}
    assert after.version > before.version


async def _begin(store: Store, epoch: int, beginning: Beginning) -> None:
    async with store.transaction() as transaction:
        await transaction.fence({ORDERS: epoch})
        await transaction.write(Changes(beginnings={ORDERS: beginning}))


async def _register(store: Store, trigger: Trigger) -> Registry:
    return await store.handlers.register({"late": [trigger]}, owner="me", now=NOW, until=NOW)
