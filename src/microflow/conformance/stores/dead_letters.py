"""Dead letters: kept with all their bytes, and redriven once."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from microflow.conformance.scenarios import Scenarios
from microflow.conformance.stores.examples import (
    NOW,
    ORDERS,
    SECOND,
    a_claim,
    a_key,
    a_letter,
    a_record,
    bury,
    commit,
    due,
    park,
    parked,
)
from microflow.conformance.stores.harness import Harness

dead_letters: Scenarios[Harness] = Scenarios()

LATER = NOW + 10 * SECOND
PATIENCE = 10.0


@dead_letters.add()
async def a_dead_letter_keeps_everything(harness: Harness) -> None:
    """An event that no attempt will help, with all its bytes."""
    store = await harness.open()
    letters = [
        replace(a_letter(1), reason="rejected", trace="a\n\tb"),
        replace(a_letter(2, ""), record=a_record(2)._replace(key=None, value=None, timestamp=None), reason="decode"),
        replace(a_letter(3), record=a_record(3)._replace(value=bytes(range(256)) * 4096), order="none", content=b""),
    ]
    await bury(store, *letters)

    found = await store.dead_letters.list()

    assert [replace(letter, id=0) for letter in found] == letters
    assert len({letter.id for letter in found} - {0}) == 3
    assert [await store.dead_letters.get(letter.id) for letter in found] == list(found)
    assert await store.dead_letters.get(max(letter.id for letter in found) + 1) is None


@dead_letters.add()
async def a_dead_letter_is_found_by_its_claim(harness: Harness) -> None:
    """The ids of those dead letters of these claims that are `dead`."""
    store = await harness.open()
    await bury(store, a_letter(1), a_letter(2), a_letter(2, "another"))
    ids = {(each.claim.handler, each.record.offset): each.id for each in await store.dead_letters.list()}
    await store.dead_letters.redrive([ids["take_payment", 1]], now=NOW)

    found = await store.dead_letters.of([a_key(1), a_key(2), a_key(2, "another"), a_key(3), a_key(2, "nobody")])

    assert dict(found) == {a_key(2): ids["take_payment", 2], a_key(2, "another"): ids["another", 2]}
    assert dict(await store.dead_letters.of([])) == {}


@dead_letters.add()
async def dead_letters_are_listed_by_id_in_pages(harness: Harness) -> None:
    """Dead letters by ascending id, those of one handler if named."""
    store = await harness.open()
    for number in range(5):
        await bury(store, a_letter(number, "even" if number % 2 == 0 else "odd"))
    every = [letter.id for letter in await store.dead_letters.list()]

    first = [letter.id for letter in await store.dead_letters.list(limit=2)]
    second = [letter.id for letter in await store.dead_letters.list(limit=2, after=first[-1])]
    odd = [letter.record.offset for letter in await store.dead_letters.list(handler="odd")]

    assert every == sorted(every)
    assert first + second == every[:4]
    assert odd == [1, 3]
    assert list(await store.dead_letters.list(handler="unknown")) == []


@dead_letters.add()
async def a_redriven_event_is_parked_for_its_handler(harness: Harness) -> None:
    """Park dead letters for their handler again, due now. Redriven ones are listed with their state."""
    store = await harness.open()
    await bury(store, a_letter(1), a_letter(2))
    first, second = await store.dead_letters.list()

    redriven = await store.dead_letters.redrive([first.id, 10_000], now=LATER)

    assert redriven == {first.id}
    assert await due(store, now=LATER - SECOND) == []
    (event,) = await store.parking.due([ORDERS], now=LATER, limit=9)
    assert (event.claim, event.record, event.order, event.content) == (
        first.claim,
        first.record,
        first.order,
        first.content,
    )
    assert event.attempt == 0, "its attempts are counted anew"
    assert [letter.state for letter in await store.dead_letters.list()] == ["redriving", "dead"]
    assert second.state == "dead"
    assert list(await commit(store, [a_claim(1)])) == [False], "a redelivery meanwhile is a duplicate"


@dead_letters.add(requires={"several_handles"})
async def who_waits_for_parked_events_is_woken_by_a_redrive_of_another_handle(harness: Harness) -> None:
    """Parking.changed: return soon after anybody … in another process may have parked or redriven an event."""
    store, other = await harness.open(), await harness.open()
    await bury(store, a_letter(1))
    (letter,) = await store.dead_letters.list()
    waiting = asyncio.create_task(store.parking.changed())
    await asyncio.wait([waiting], timeout=0.05)

    await other.dead_letters.redrive([letter.id], now=NOW)

    await asyncio.wait_for(waiting, PATIENCE)


@dead_letters.add()
async def a_redriven_event_stands_behind_what_is_parked_of_its_key(harness: Harness) -> None:
    """… behind whatever of their key is parked."""
    store = await harness.open()
    await bury(store, a_letter(1), a_letter(2))
    await park(store, parked(3, due=LATER))

    letters = await store.dead_letters.list()
    await store.dead_letters.redrive([letter.id for letter in reversed(letters)], now=NOW)

    assert await due(store) == []
    await commit(store, [a_claim(3, resumes=True)])
    assert await due(store) == [(1, "take_payment")]
    await commit(store, [a_claim(1, resumes=True)])
    assert await due(store) == [(2, "take_payment")]


@dead_letters.add(requires={"several_handles"})
async def of_two_who_redrive_at_once_one_gets_each(harness: Harness) -> None:
    """Of two who ask at once, one gets each."""
    stores = [await harness.open(), await harness.open()]
    await bury(stores[0], *(a_letter(number, key=str(number).encode()) for number in range(10)))
    identifiers = [letter.id for letter in await stores[0].dead_letters.list()]

    results = await asyncio.gather(*(store.dead_letters.redrive(identifiers, now=NOW) for store in stores))

    assert sorted(results[0] | results[1]) == identifiers
    assert results[0].isdisjoint(results[1])
    assert await stores[0].parking.count() == 10
    assert await stores[0].dead_letters.redrive(identifiers, now=NOW) == frozenset()


@dead_letters.add()
async def a_redriven_event_that_succeeds_is_done(harness: Harness) -> None:
    """It is `done` when its handler has succeeded …"""
    store = await harness.open()
    await bury(store, a_letter(1), a_letter(2))
    identifiers = [letter.id for letter in await store.dead_letters.list()]
    await store.dead_letters.redrive(identifiers[:1], now=NOW)

    await commit(store, [a_claim(1, resumes=True)])

    assert [letter.state for letter in await store.dead_letters.list()] == ["done", "dead"]
    assert await store.dead_letters.redrive(identifiers[:1], now=NOW) == frozenset()
    assert await store.parking.count() == 0


@dead_letters.add()
async def a_redriven_event_that_fails_is_dead_again_under_its_id(harness: Harness) -> None:
    """… `dead` again if not."""
    store = await harness.open()
    await bury(store, a_letter(1))
    (letter,) = await store.dead_letters.list()
    await store.dead_letters.redrive([letter.id], now=NOW)
    retry = a_claim(1, resumes=True, status="parked")
    await commit(store, [retry], parked=[parked(1, attempt=1, due=NOW)])
    assert [found.state for found in await store.dead_letters.list()] == ["redriving"]

    again = replace(a_letter(1, failed_at=LATER, attempts=2), error="NewError", trace="elsewhere", reason="rejected")
    await commit(store, [a_claim(1, resumes=True, status="dead")], dead_letters=[again])

    assert list(await store.dead_letters.list()) == [replace(again, id=letter.id, state="dead")]
    assert await store.parking.count() == 0
    assert await store.dead_letters.redrive([letter.id], now=LATER) == {letter.id}


@dead_letters.add()
async def a_redriven_event_that_is_undone_is_still_redriving(harness: Harness) -> None:
    """What a transaction that was rolled back said of a dead letter is not so."""
    store = await harness.open()
    await bury(store, a_letter(1))
    (letter,) = await store.dead_letters.list()
    await store.dead_letters.redrive([letter.id], now=NOW)

    try:
        async with store.transaction() as transaction:
            await transaction.claim([a_claim(1, resumes=True)], now=NOW)
            raise RuntimeError
    except RuntimeError:
        pass

    assert [found.state for found in await store.dead_letters.list()] == ["redriving"]
    assert await due(store) == [(1, "take_payment")]


@dead_letters.add()
async def a_dead_letter_frees_what_waited_for_the_event(harness: Harness) -> None:
    """After a dead letter the followers go on, unless the handler says `halt` (rule 7)."""
    store = await harness.open()
    await park(store, parked(1))
    await park(store, parked(2, attempt=0))

    await commit(store, [a_claim(1, resumes=True, status="dead")], dead_letters=[a_letter(1)])

    assert await due(store) == [(2, "take_payment")]


@dead_letters.add()
async def old_dead_letters_are_purged_unless_they_are_being_redriven(harness: Harness) -> None:
    """Forget dead letters that failed before an instant and are not being redriven; return how many."""
    store = await harness.open()
    await bury(store, a_letter(1), a_letter(2), a_letter(3), a_letter(4, failed_at=LATER))
    identifiers = [letter.id for letter in await store.dead_letters.list()]
    await store.dead_letters.redrive(identifiers[:1], now=NOW)

    assert await store.dead_letters.purge(failed_before=NOW, limit=9) == 0
    assert await store.dead_letters.purge(failed_before=NOW + SECOND, limit=1) == 1
    assert await store.dead_letters.purge(failed_before=NOW + SECOND, limit=9) == 1

    assert [letter.record.offset for letter in await store.dead_letters.list()] == [1, 4]
    assert set(await store.inbox.seen([a_key(2)])) == {a_key(2)}, "its claim has a retention of its own"
