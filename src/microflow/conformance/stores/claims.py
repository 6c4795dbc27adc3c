"""Claims: at most one transaction ever gets an event for a handler."""

from __future__ import annotations

import asyncio

from microflow.conformance.scenarios import Scenarios
from microflow.conformance.stores.examples import (
    HANDLER,
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
)
from microflow.conformance.stores.harness import Harness
from microflow.ports import TopicPartition

claims: Scenarios[Harness] = Scenarios()

LATER = NOW + 10 * SECOND


@claims.add()
async def a_claim_is_granted_once(harness: Harness) -> None:
    """Not granted: one that is there already."""
    store = await harness.open()

    first = await commit(store, [a_claim(1), a_claim(2)])
    second = await commit(store, [a_claim(2), a_claim(3)])

    assert [list(first), list(second)] == [[True, True], [False, True]]


@claims.add()
async def a_claim_is_granted_once_within_one_call(harness: Harness) -> None:
    """Not granted: one that stands earlier in the same call."""
    store = await harness.open()

    granted = await commit(store, [a_claim(1), a_claim(2), a_claim(1), a_claim(2), a_claim(3)])

    assert list(granted) == [True, True, False, False, True]


@claims.add()
async def every_handler_has_a_claim_of_its_own(harness: Harness) -> None:
    """What a claim is unique by, within a service: a handler, and the digest of an event's source and id."""
    store = await harness.open()

    granted = await commit(store, [a_claim(1, "take_payment"), a_claim(1, "write_receipt"), a_claim(1, "")])

    assert list(granted) == [True, True, True]


@claims.add()
async def five_hundred_claims_are_entered_in_one_call(harness: Harness) -> None:
    """True for each one granted, in the order of the claims."""
    store = await harness.open()
    await commit(store, [a_claim(number) for number in range(0, 500, 7)])

    granted = await commit(store, [a_claim(number) for number in range(500)])

    assert list(granted) == [number % 7 != 0 for number in range(500)]


@claims.add()
async def no_claims_are_no_error(harness: Harness) -> None:
    """True for each one granted: for none, nothing."""
    store = await harness.open()

    assert list(await commit(store, [])) == []


@claims.add(requires={"several_handles"})
async def of_two_transactions_at_once_one_is_granted_a_claim(harness: Harness) -> None:
    """At most one transaction ever gets it."""
    stores = [await harness.open(), await harness.open()]

    for number in range(20):
        results = await asyncio.gather(*(commit(store, [a_claim(number), a_claim(1000)]) for store in stores))
        assert sorted(granted[0] for granted in results) == [False, True]


@claims.add()
async def seen_tells_claims_of_every_status_with_their_content(harness: Harness) -> None:
    """The claims that are there, whatever their status, each with its `content`."""
    store = await harness.open()
    await commit(store, [a_claim(1, content=b"one"), a_claim(2, status="parked", content=b"two")], parked=[parked(2)])
    await commit(store, [a_claim(3, status="dead", content=b"three")], dead_letters=[a_letter(3)])

    seen = await store.inbox.seen([a_key(1), a_key(2), a_key(3), a_key(4), a_key(1, "another")])

    assert dict(seen) == {a_key(1): b"one", a_key(2): b"two", a_key(3): b"three"}
    assert dict(await store.inbox.seen([])) == {}


@claims.add()
async def an_event_that_is_not_parked_cannot_resume(harness: Harness) -> None:
    """Not granted: one that `resumes` and has no parked row."""
    store = await harness.open()
    await commit(store, [a_claim(1)])

    granted = await commit(store, [a_claim(1, resumes=True), a_claim(2, resumes=True)])

    assert list(granted) == [False, False]
    assert dict(await store.inbox.seen([a_key(2)])) == {}


@claims.add()
async def an_event_that_resumes_and_is_done_loses_its_parked_row(harness: Harness) -> None:
    """A granted one that resumes and is not `parked` again loses its parked row."""
    store = await harness.open()
    await park(store, parked(1))

    granted = await commit(store, [a_claim(1, resumes=True), a_claim(1, resumes=True)])
    again = await commit(store, [a_claim(1, resumes=True), a_claim(1)])

    assert [list(granted), list(again)] == [[True, False], [False, False]]
    assert await store.parking.count() == 0


@claims.add()
async def an_event_that_resumes_and_is_parked_again_keeps_its_row(harness: Harness) -> None:
    """A granted one that resumes and is not `parked` again loses its parked row."""
    store = await harness.open()
    await park(store, parked(1))

    claim = a_claim(1, resumes=True, status="parked")
    granted = await commit(store, [claim], parked=[parked(1, attempt=2, due=LATER)])

    assert list(granted) == [True]
    assert [event.attempt for event in await store.parking.due([ORDERS], now=LATER, limit=9)] == [2]
    assert list(await commit(store, [a_claim(1)])) == [False]


@claims.add()
async def an_event_resumes_once_within_one_call(harness: Harness) -> None:
    """Not granted: one that stands earlier in the same call, though its row stays because it is parked again."""
    store = await harness.open()
    await park(store, parked(1))

    again = a_claim(1, resumes=True, status="parked")

    assert list(await commit(store, [again, again], parked=[parked(1, attempt=2)])) == [True, False]


@claims.add()
async def an_event_that_resumes_and_is_given_up_becomes_a_dead_letter(harness: Harness) -> None:
    """A granted one that resumes and is not `parked` again loses its parked row."""
    store = await harness.open()
    await park(store, parked(1))

    await commit(store, [a_claim(1, resumes=True, status="dead")], dead_letters=[a_letter(1)])

    assert await store.parking.count() == 0
    assert [letter.state for letter in await store.dead_letters.list()] == ["dead"]


@claims.add()
async def completed_claims_behind_the_watermark_are_purged(harness: Harness) -> None:
    """Forget claims completed before an instant whose offset the stored watermark has passed; return how many."""
    store = await harness.open()
    other = TopicPartition("orders", 1)
    await commit(store, [a_claim(1), a_claim(2), a_claim(3)], now=NOW)
    await commit(store, [a_claim(4)], now=LATER)
    await commit(store, [a_claim(1, "unread", source=other)], now=NOW)
    await commit(store, watermarks={ORDERS: 3})

    purged = await store.inbox.purge(completed_before=NOW + SECOND, limit=100)

    keys = [a_key(1), a_key(2), a_key(3), a_key(4), a_key(1, "unread")]
    assert purged == 2
    assert set(await store.inbox.seen(keys)) == {a_key(3), a_key(4), a_key(1, "unread")}
    assert list(await commit(store, [a_claim(1), a_claim(3)])) == [True, False]


@claims.add()
async def retention_counts_from_completion(harness: Harness) -> None:
    """Completed before an instant: a parked event's claim is completed when it is done, not when it came."""
    store = await harness.open()
    await park(store, parked(1))
    await commit(store, watermarks={ORDERS: 100})
    assert await store.inbox.purge(completed_before=LATER, limit=100) == 0

    await commit(store, [a_claim(1, resumes=True)], now=LATER)

    assert await store.inbox.purge(completed_before=LATER, limit=100) == 0
    assert await store.inbox.purge(completed_before=LATER + SECOND, limit=100) == 1


@claims.add()
async def claims_of_parked_events_and_of_dead_letters_stay(harness: Harness) -> None:
    """Claims of parked events and of dead letters that are still there stay."""
    store = await harness.open()
    await park(store, parked(1))
    await bury(store, a_letter(2))
    await commit(store, watermarks={ORDERS: 100})

    assert await store.inbox.purge(completed_before=LATER, limit=100) == 0
    await store.dead_letters.purge(failed_before=LATER, limit=100)

    assert await store.inbox.purge(completed_before=LATER, limit=100) == 1
    assert set(await store.inbox.seen([a_key(1), a_key(2)])) == {a_key(1)}


@claims.add()
async def a_purge_stops_at_its_limit(harness: Harness) -> None:
    """Return how many: never more than `limit`."""
    store = await harness.open()
    await commit(store, [a_claim(number) for number in range(10)], watermarks={ORDERS: 10})

    purges = [await store.inbox.purge(completed_before=LATER, limit=4) for _ in range(4)]

    assert purges == [4, 4, 2, 0]


@claims.add()
async def a_handler_that_failed_alone_is_parked_alone(harness: Harness) -> None:
    """A claim is (service, handler, event): while an event is parked for one handler its other handlers still run."""
    store = await harness.open()
    await commit(
        store, [a_claim(1, HANDLER, status="parked"), a_claim(1, "write_receipt")], parked=[parked(1, HANDLER)]
    )

    granted = await commit(store, [a_claim(1, HANDLER), a_claim(1, "write_receipt"), a_claim(1, HANDLER, resumes=True)])

    assert list(granted) == [False, False, True]
    assert await due(store) == []


@claims.add()
async def the_claims_of_a_handler_from_an_offset_on_are_noticed(harness: Harness) -> None:
    """Whether a handler has a claim, whatever its status, to a record at or behind one of these offsets."""
    store = await harness.open()
    other = TopicPartition("orders", 1)
    await commit(store, [a_claim(3, status="dead"), a_claim(9, "write_receipt"), a_claim(4, source=other)])
    await park(store, parked(5))

    for offsets, expected in (
        ({}, False),
        ({ORDERS: 6}, False),
        ({ORDERS: 5}, True),
        ({ORDERS: 6, other: 4}, True),
        ({ORDERS: 6, other: 5}, False),
        ({TopicPartition("payments", 0): 0}, False),
    ):
        assert await store.inbox.claimed_from(HANDLER, offsets) is expected, offsets
    assert not await store.inbox.claimed_from("nobody", {ORDERS: 0})
    assert not await (await harness.open("shipping")).inbox.claimed_from(HANDLER, {ORDERS: 0})
