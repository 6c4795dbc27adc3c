"""The registry: which handlers a service has, whatever the process, and nothing committed behind its back."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping
from datetime import datetime

from microflow.conformance.scenarios import Scenarios
from microflow.conformance.stores.examples import (
    NOW,
    ORDERS,
    SECOND,
    a_claim,
    a_key,
    a_letter,
    bury,
    commit,
    due,
    park,
    parked,
    raised,
)
from microflow.conformance.stores.harness import Harness
from microflow.errors import Fenced, RegistryChanged
from microflow.handlers import Trigger
from microflow.ports import Changes, Registry, Store, TopicPartition

registry: Scenarios[Harness] = Scenarios()

ACCEPTED = Trigger("OrderAccepted", "orders")
CANCELLED = Trigger("OrderCancelled", "orders")
LATER = NOW + 30 * SECOND
REFUND = TopicPartition("refunds", 0)


async def _register(
    store: Store,
    handlers: Mapping[str, Collection[Trigger]],
    *,
    owner: str = "me",
    now: datetime = NOW,
    until: datetime = LATER,
) -> Registry:
    return await store.handlers.register(handlers, owner=owner, now=now, until=until)


async def _fence(store: Store, version: int, epochs: Mapping[TopicPartition, int] | None = None) -> None:
    async with store.transaction() as transaction:
        await transaction.fence(epochs or {}, registry=version)


@registry.add()
async def what_is_registered_is_remembered_with_what_triggers_it(harness: Harness) -> None:
    """Triggers that are not remembered yet are; return the registry then."""
    store = await harness.open()
    assert await store.handlers.registry(now=NOW) == Registry(0, {}, {}, {})

    told = await _register(store, {"take_payment": [ACCEPTED, CANCELLED], "ship": [ACCEPTED]})

    assert {name: set(each.triggers) for name, each in told.handlers.items()} == {
        "take_payment": {ACCEPTED, CANCELLED},
        "ship": {ACCEPTED},
    }
    assert told.processes == {"me": {"take_payment": frozenset({ACCEPTED, CANCELLED}), "ship": frozenset({ACCEPTED})}}
    assert told.handlers["ship"].since == NOW
    assert await store.handlers.registry(now=NOW) == told


@registry.add()
async def only_what_is_new_makes_a_new_version(harness: Harness) -> None:
    """… that makes a new version."""
    store = await harness.open()
    first = await _register(store, {"take_payment": [ACCEPTED]})
    again = await _register(store, {"take_payment": [ACCEPTED]}, owner="you")
    another_trigger = await _register(store, {"take_payment": [ACCEPTED, CANCELLED]})
    another_handler = await _register(store, {"ship": [ACCEPTED]}, owner="you")
    nothing = await _register(store, {}, owner="you")

    assert first.version == again.version < another_trigger.version < another_handler.version == nothing.version
    assert set(nothing.handlers) == {"take_payment", "ship"}


@registry.add()
async def a_handler_reads_from_the_watermarks_that_were_stored_when_it_was_registered(harness: Harness) -> None:
    """Each from the stored watermarks of its topic on; a partition that is not named from where the service began."""
    store = await harness.open()
    fresh = await _register(store, {"take_payment": [ACCEPTED]})
    await commit(store, watermarks={ORDERS: 7, TopicPartition("orders", 3): 0, REFUND: 5})

    later = await _register(store, {"take_payment": [ACCEPTED, CANCELLED], "ship": [ACCEPTED]}, now=LATER)

    assert fresh.handlers["take_payment"].triggers == {ACCEPTED: {}}
    assert later.handlers["take_payment"].triggers == {ACCEPTED: {}, CANCELLED: {0: 7, 3: 0}}
    assert later.handlers["ship"].triggers == {ACCEPTED: {0: 7, 3: 0}}
    assert later.handlers["ship"].since == LATER
    assert later.handlers["take_payment"].since == NOW


@registry.add()
async def a_transaction_under_an_old_version_is_refused(harness: Harness) -> None:
    """RegistryChanged unless `registry` is the version; Fenced comes first: who owns nothing has nothing to learn."""
    store = await harness.open()
    epoch = (await store.partitions.take([ORDERS], owner="me"))[ORDERS].epoch
    old = (await _register(store, {"take_payment": [ACCEPTED]})).version
    await _fence(store, old, {ORDERS: epoch})
    new = (await _register(store, {"ship": [ACCEPTED]}, owner="you")).version

    error = await raised(RegistryChanged, lambda: _fence(store, old, {ORDERS: epoch}))

    assert error.version == new
    await raised(Fenced, lambda: _fence(store, old, {ORDERS: epoch + 1}))
    await _fence(store, new, {ORDERS: epoch})
    async with store.transaction() as transaction:
        await transaction.fence({ORDERS: epoch})


@registry.add()
async def a_service_without_a_registry_has_version_0(harness: Harness) -> None:
    """… the version of the service's registry."""
    store = await harness.open()

    await _fence(store, 0)
    await raised(RegistryChanged, lambda: _fence(store, 1))


@registry.add(requires={"several_handles"})
async def a_registration_waits_for_the_transactions_whose_fence_has_passed(harness: Harness) -> None:
    """It waits for the transactions whose fence has passed, so it knows what they have committed."""
    old, new = await harness.open(), await harness.open()
    version = (await _register(old, {"take_payment": [ACCEPTED]})).version
    happened: list[str] = []

    async def register() -> Registry:
        registry = await _register(new, {"ship": [ACCEPTED]}, owner="you")
        happened.append("registered")
        return registry

    async with old.transaction() as transaction:
        await transaction.fence({}, registry=version)
        registering = asyncio.create_task(register())
        await asyncio.wait([registering], timeout=0.1)
        await transaction.write(Changes(watermarks={ORDERS: 5}))
        happened.append("written")

    assert (await registering).handlers["ship"].triggers == {ACCEPTED: {0: 5}}
    assert happened == ["written", "registered"]
    await raised(RegistryChanged, lambda: _fence(old, version))


@registry.add(requires={"several_handles"})
async def of_those_who_register_the_same_at_once_one_makes_a_version(harness: Harness) -> None:
    """Only what is new makes a new version, whoever comes first."""
    stores = [await harness.open() for _ in range(4)]

    told = await asyncio.gather(
        *(_register(store, {"take_payment": [ACCEPTED]}, owner=str(number)) for number, store in enumerate(stores))
    )

    assert {each.version for each in told} == {1}
    assert set((await stores[0].handlers.registry(now=NOW)).processes) == {"0", "1", "2", "3"}


@registry.add()
async def a_process_lives_until_the_instant_that_it_named_last(harness: Harness) -> None:
    """A process lives until the instant that it named last, or until it leaves."""
    store = await harness.open()
    await _register(store, {"ship": [ACCEPTED]}, owner="me", until=NOW + SECOND)
    await _register(store, {"ship": [ACCEPTED]}, owner="you", until=NOW + SECOND)
    await _register(store, {"ship": [CANCELLED]}, owner="me", until=NOW + 5 * SECOND)
    await _register(store, {}, owner="she", until=LATER)

    living = [
        dict((await store.handlers.registry(now=NOW + seconds * SECOND)).processes) for seconds in (0.999999, 1, 5)
    ]
    await store.handlers.leave(owner="she")
    await store.handlers.leave(owner="nobody")

    mine = {"ship": frozenset({CANCELLED})}
    assert living == [
        {"me": mine, "you": {"ship": frozenset({ACCEPTED})}, "she": {}},
        {"me": mine, "she": {}},
        {"she": {}},
    ]
    assert dict((await store.handlers.registry(now=NOW + 5 * SECOND)).processes) == {}


@registry.add()
async def what_no_live_process_has_is_forgotten(harness: Harness) -> None:
    """Forget triggers that no live process has; return the handlers that lost their last one."""
    store = await harness.open()
    await _register(store, {"ship": [ACCEPTED], "take_payment": [ACCEPTED]}, owner="old", until=NOW + SECOND)
    before = await _register(store, {"take_payment": [CANCELLED]}, owner="me")
    gone = {"ship": [ACCEPTED], "take_payment": [ACCEPTED, CANCELLED], "unheard_of": [ACCEPTED]}

    assert await store.handlers.forget(gone, now=NOW) == {}
    unchanged = await store.handlers.registry(now=NOW)
    assert await store.handlers.forget(gone, now=NOW + SECOND) == {"ship": {ACCEPTED}, "take_payment": {ACCEPTED}}
    after = await store.handlers.registry(now=NOW + SECOND)

    assert (unchanged.version, set(unchanged.handlers)) == (before.version, {"ship", "take_payment"})
    assert after.version > before.version
    assert {name: set(each.triggers) for name, each in after.handlers.items()} == {"take_payment": {CANCELLED}}
    await raised(RegistryChanged, lambda: _fence(store, before.version))


@registry.add()
async def a_handler_that_events_wait_for_keeps_its_last_triggers(harness: Harness) -> None:
    """While events are parked for a handler it keeps its last triggers."""
    store = await harness.open()
    await _register(store, {"take_payment": [ACCEPTED, CANCELLED]}, until=NOW)
    await park(store, parked(1))

    assert await store.handlers.forget({"take_payment": [ACCEPTED, CANCELLED]}, now=NOW) == {}
    assert set((await store.handlers.registry(now=NOW)).handlers["take_payment"].triggers) == {ACCEPTED, CANCELLED}
    assert await store.handlers.forget({"take_payment": [CANCELLED]}, now=NOW) == {"take_payment": {CANCELLED}}
    assert set((await store.handlers.registry(now=NOW)).handlers["take_payment"].triggers) == {ACCEPTED}
    await commit(store, [a_claim(1, resumes=True)])
    assert await store.handlers.forget({"take_payment": [ACCEPTED]}, now=NOW) == {"take_payment": {ACCEPTED}}


@registry.add()
async def a_handler_that_is_to_go_although_events_wait_for_it_is_forgotten_at_once(harness: Harness) -> None:
    """They are to go `although_awaited`: then no more events are parked for it once this returns."""
    store = await harness.open()
    before = await _register(store, {"take_payment": [ACCEPTED]}, until=NOW)
    await park(store, parked(1))

    forgotten = await store.handlers.forget({"take_payment": [ACCEPTED]}, now=NOW, although_awaited=True)

    assert forgotten == {"take_payment": {ACCEPTED}}

    assert dict(await store.parking.counts()) == {"take_payment": 1}
    await raised(RegistryChanged, lambda: _fence(store, before.version))


@registry.add()
async def a_renamed_handler_keeps_its_claims_its_parked_events_and_its_dead_letters(harness: Harness) -> None:
    """Give what a handler has claimed, and what is parked or dead for it, to another name."""
    store = await harness.open()
    await _register(store, {"take_payment": [ACCEPTED]}, until=NOW)
    await commit(store, [a_claim(1)])
    await park(store, parked(2), parked(3, attempt=0))
    await bury(store, a_letter(4, key=b"order-2"))
    version = (await store.handlers.registry(now=NOW)).version

    assert await store.handlers.rename("take_payment", "charge", now=NOW)

    registry = await store.handlers.registry(now=NOW)
    assert registry.version > version
    assert set(registry.handlers) == {"charge"}
    assert dict(registry.renamed) == {"take_payment": "charge"}
    assert not any(await commit(store, [a_claim(number, "charge") for number in (1, 2, 3, 4)]))
    assert await due(store) == [(2, "charge")]
    assert [letter.claim for letter in await store.dead_letters.list()] == [a_key(4, "charge")]
    assert dict(await store.parking.counts()) == {"charge": 2}
    assert list(await commit(store, [a_claim(2, "charge", resumes=True)])) == [True]
    assert await due(store) == [(3, "charge")]


@registry.add()
async def a_handler_that_a_live_process_has_is_not_renamed(harness: Harness) -> None:
    """False, and nothing done, if a live process has the old one."""
    store = await harness.open()
    await _register(store, {"take_payment": [ACCEPTED]}, until=NOW + SECOND)

    assert not await store.handlers.rename("take_payment", "charge", now=NOW)
    assert set((await store.handlers.registry(now=NOW)).handlers) == {"take_payment"}
    assert await store.handlers.rename("take_payment", "charge", now=NOW + SECOND)


@registry.add()
async def what_both_names_have_claimed_is_done_if_one_has_done_it(harness: Harness) -> None:
    """What both have claimed is done if one of them has done it."""
    store = await harness.open()
    await _register(store, {"old": [ACCEPTED, CANCELLED]}, owner="old", until=NOW)
    await _register(store, {"new": [ACCEPTED]}, owner="new")
    await commit(store, [a_claim(1, "old"), a_claim(2, "new"), a_claim(5, "old"), a_claim(6, "new")])
    await park(store, parked(1, "new"), parked(2, "old"), parked(3, "old"), parked(3, "new", error="newer"))
    await park(store, parked(4, "old"), parked(7, "new", key=b"order-2"))
    await bury(store, a_letter(8, "old"), a_letter(8, "new", attempts=1))

    assert await store.handlers.rename("old", "new", now=NOW)

    everything = [a_key(number, "new") for number in range(1, 9)]
    assert set(await store.inbox.seen(everything)) == set(everything)
    assert {row.record.offset for row in await store.parking.waiting("new", limit=9)} == {3, 4, 7}
    assert await due(store) == [(3, "new"), (7, "new")]
    await commit(store, [a_claim(3, "new", resumes=True)])
    assert await due(store) == [(4, "new"), (7, "new")]
    assert [letter.attempts for letter in await store.dead_letters.list()] == [1]
    registry = await store.handlers.registry(now=NOW)
    assert {name: set(each.triggers) for name, each in registry.handlers.items()} == {"new": {ACCEPTED, CANCELLED}}
    assert not any(await commit(store, [a_claim(number, "new") for number in range(1, 9)]))


@registry.add()
async def the_order_of_a_handler_holds_across_its_renaming(harness: Harness) -> None:
    """What is parked for it is the other name's: behind what that has parked, or before it."""
    store = await harness.open()
    await park(store, parked(1, "old", order="handler"))
    await park(store, parked(2, "new", order="handler"))
    assert await due(store) == [(1, "old"), (2, "new")]

    await store.handlers.rename("old", "new", now=NOW)

    assert await due(store) == [(1, "new")]
    await commit(store, [a_claim(1, "new", resumes=True)])
    assert await due(store) == [(2, "new")]


@registry.add()
async def a_name_that_was_given_up_is_not_registered_until_it_is_given_back(harness: Harness) -> None:
    """… but for those of a name that was renamed."""
    store = await harness.open()
    await _register(store, {"old": [ACCEPTED]}, until=NOW)
    await store.handlers.rename("old", "new", now=NOW)
    await store.handlers.rename("new", "newest", now=NOW)

    refused = await _register(store, {"old": [ACCEPTED], "ship": [ACCEPTED]}, until=NOW)
    await store.handlers.rename("newest", "old", now=NOW)
    back = await _register(store, {"old": [ACCEPTED]})

    assert set(refused.handlers) == {"newest", "ship"}
    assert dict(refused.renamed) == {"old": "newest", "new": "newest"}
    assert dict(back.renamed) == {"new": "old", "newest": "old"}
    assert set(back.handlers) == {"old", "ship"}


@registry.add()
async def what_waits_for_a_handler_is_told_in_the_order_in_which_it_was_parked(harness: Harness) -> None:
    """The first events that are parked for a handler; how many there are for each."""
    store = await harness.open()
    await park(store, parked(5), parked(3, key=b"order-2"), parked(4, "ship"), parked(1, due=None))

    waiting = await store.parking.waiting("take_payment", limit=2)

    assert list(waiting) == [parked(5), parked(3, key=b"order-2")]
    assert await store.parking.waiting("unheard_of", limit=2) == []
    assert dict(await store.parking.counts()) == {"take_payment": 3, "ship": 1}
    assert await store.parking.count() == 4


@registry.add(requires={"several_services"})
async def each_service_has_a_registry_of_its_own(harness: Harness) -> None:
    """Which handlers a service has."""
    payments, shipping = await harness.open("payments"), await harness.open("shipping")
    version = (await _register(payments, {"take_payment": [ACCEPTED]})).version
    await park(payments, parked(1))

    told = await _register(shipping, {"ship": [ACCEPTED]}, owner="you")
    await _register(shipping, {"ship": [ACCEPTED, CANCELLED]}, owner="you")

    assert (set(told.handlers), set(told.processes)) == ({"ship"}, {"you"})
    assert dict(await shipping.parking.counts()) == {}
    assert list(await shipping.parking.waiting("take_payment", limit=9)) == []
    await _fence(payments, version)
    await shipping.handlers.leave(owner="me")
    await shipping.handlers.rename("take_payment", "charge", now=NOW)
    assert set((await payments.handlers.registry(now=NOW)).processes) == {"me"}
    assert set((await payments.handlers.registry(now=NOW)).handlers) == {"take_payment"}
