"""Parked events: what waits for what, and what may run now."""

from __future__ import annotations

from dataclasses import replace

from microflow.conformance.scenarios import Scenarios
from microflow.conformance.stores.examples import (
    NOW,
    ORDERS,
    SECOND,
    a_claim,
    a_key,
    a_letter,
    commit,
    due,
    park,
    parked,
)
from microflow.conformance.stores.harness import Harness
from microflow.ports import Blocked, ClaimKey, OrderingKey, TopicPartition

parking: Scenarios[Harness] = Scenarios()

LATER = NOW + 10 * SECOND
KEY = OrderingKey("orders", b"order-1")


@parking.add()
async def a_parked_event_comes_back_as_it_was(harness: Harness) -> None:
    """An event that waits for its next attempt: with all that was said about it."""
    store = await harness.open()
    events = [
        parked(1, key=None, order="none"),
        replace(parked(2, key=b"\x00\xff"), error="", content=b"", first_failed_at=None),
        replace(parked(3, key=b""), record=parked(3).record._replace(key=b"", value=None, headers=(), timestamp=None)),
    ]
    await park(store, *events)

    assert list(await store.parking.due([ORDERS], now=NOW, limit=9)) == events


@parking.add()
async def an_event_is_due_at_its_instant_and_not_before(harness: Harness) -> None:
    """Events that may run now: due …"""
    store = await harness.open()
    await park(store, parked(1, key=b"a", due=LATER), parked(2, key=b"b", due=NOW))

    assert await due(store, now=NOW - SECOND / 1_000_000) == []
    assert await due(store, now=NOW) == [(2, "take_payment")]
    assert await due(store, now=LATER) == [(1, "take_payment"), (2, "take_payment")]


@parking.add()
async def only_events_of_the_named_handlers_come_back(harness: Harness) -> None:
    """Those of `handlers` only, if these are named."""
    store = await harness.open()
    await park(store, parked(1, key=b"a", handler="gone"), parked(2, key=b"b", handler="known", due=LATER))

    found = await store.parking.due([ORDERS], now=LATER, limit=9, handlers=["known", "unheard of"])

    assert [event.claim.handler for event in found] == ["known"]
    assert await store.parking.next_due([ORDERS], handlers=["known"]) == LATER
    assert await store.parking.next_due([ORDERS], handlers=["unheard of"]) is None


@parking.add()
async def the_oldest_come_first_and_no_more_than_the_limit(harness: Harness) -> None:
    """Oldest first."""
    store = await harness.open()
    await park(store, *(parked(number, key=str(number).encode(), due=NOW + number * SECOND) for number in range(6)))

    found = await store.parking.due([ORDERS], now=LATER, limit=4)

    assert [event.record.offset for event in found] == [0, 1, 2, 3]


@parking.add()
async def only_the_partitions_asked_for_are_looked_at(harness: Harness) -> None:
    """The earliest `due` of these partitions."""
    store = await harness.open()
    other = TopicPartition("orders", 1)
    await park(store, parked(1, key=b"a", due=LATER), parked(2, key=b"b", source=other))

    assert await due(store, now=LATER) == [(1, "take_payment")]
    assert await due(store, now=LATER, source=other) == [(2, "take_payment")]
    assert await store.parking.next_due([ORDERS]) == LATER
    assert await store.parking.next_due([other, ORDERS]) == NOW
    assert await store.parking.next_due([]) is None
    assert await store.parking.next_due([TopicPartition("orders", 7)]) is None
    assert await store.parking.count() == 2


@parking.add()
async def excluded_events_are_left_out_and_still_waited_for(harness: Harness) -> None:
    """`excluding`: what the process is running already."""
    store = await harness.open()
    await park(store, parked(1, key=b"a"), parked(2, key=b"a", attempt=0), parked(3, key=b"b", due=NOW + SECOND))

    found = await store.parking.due([ORDERS], now=LATER, limit=1, excluding=[a_key(1)])

    assert [event.claim for event in found] == [a_key(3)]
    assert await store.parking.next_due([ORDERS], excluding=[a_key(1)]) == NOW + SECOND
    assert await store.parking.next_due([ORDERS], excluding=[a_key(1), a_key(3)]) is None


@parking.add()
async def an_event_waits_for_the_earlier_one_of_its_key(harness: Harness) -> None:
    """… and no parked event that they wait for stands before them."""
    store = await harness.open()
    await park(store, parked(1, due=LATER))
    await park(store, parked(2, attempt=0), parked(3, "write_receipt", attempt=0))
    await park(store, parked(4, key=b"order-2"))

    assert await due(store) == [(4, "take_payment")]
    await commit(store, [a_claim(1, resumes=True)])
    assert await due(store) == [(2, "take_payment"), (4, "take_payment")]
    await commit(store, [a_claim(2, resumes=True)])
    assert await due(store) == [(3, "write_receipt"), (4, "take_payment")]


@parking.add()
async def what_waits_for_another_has_no_instant_of_its_own(harness: Harness) -> None:
    """The instant of the next retry: not that of a row that waits behind another one."""
    store = await harness.open()
    await park(store, parked(1, due=LATER))
    await park(store, parked(2, attempt=0, due=NOW))

    assert await store.parking.next_due([ORDERS]) == LATER
    await commit(store, [a_claim(1, resumes=True)])
    assert await store.parking.next_due([ORDERS]) == NOW


@parking.add()
async def an_event_that_failed_again_keeps_its_place(harness: Harness) -> None:
    """Upserted by claim. A row that is there keeps its place in the order of its key."""
    store = await harness.open()
    await park(store, parked(1))
    await park(store, parked(2, attempt=0))

    claim = a_claim(1, resumes=True, status="parked")
    await commit(store, [claim], parked=[parked(1, attempt=2, due=LATER, error="again")])

    assert await due(store) == []
    (event,) = await store.parking.due([ORDERS], now=LATER, limit=9)
    assert (event.claim, event.attempt, event.error) == (a_key(1), 2, "again")


@parking.add()
async def the_handlers_of_one_event_do_not_wait_for_each_other(harness: Harness) -> None:
    """While an event is parked for one handler, its other handlers still run (rule 7)."""
    store = await harness.open()
    await park(store, parked(1, "a", due=LATER), parked(1, "b"), parked(1, "c", due=None))
    await park(store, parked(2, "a", attempt=0), parked(2, "b", attempt=0))

    assert await due(store) == [(1, "b")]
    await commit(store, [a_claim(1, "a", resumes=True), a_claim(1, "b", resumes=True)])
    assert await due(store) == []
    await commit(store, [a_claim(1, "c", resumes=True)])
    assert await due(store) == [(2, "a"), (2, "b")]


@parking.add()
async def events_without_a_key_wait_for_nothing(harness: Harness) -> None:
    """Records without a key have no order."""
    store = await harness.open()
    await park(store, parked(1, key=None, due=None), parked(2, key=None), parked(3, key=None, order="handler"))

    assert await due(store) == [(2, "take_payment"), (3, "take_payment")]


@parking.add()
async def one_key_on_two_topics_is_two_keys(harness: Harness) -> None:
    """What is kept in order within a service: a topic and a key."""
    store = await harness.open()
    refunds = TopicPartition("refunds", 0)
    await park(store, parked(1, due=None), parked(2, source=refunds))

    assert await due(store, source=refunds) == [(2, "take_payment")]
    assert set(await store.parking.blocked([KEY, OrderingKey("refunds", b"order-1")])) == {
        KEY,
        OrderingKey("refunds", b"order-1"),
    }


@parking.add()
async def order_by_handler_holds_its_own_handler_only(harness: Harness) -> None:
    """`order="handler"` narrows this to the handler (rule 7)."""
    store = await harness.open()
    await park(store, parked(1, "a", order="handler", due=LATER))
    await park(store, parked(2, "a", order="handler", attempt=0), parked(2, "b", order="handler"))

    assert await due(store) == [(2, "b")]
    assert await store.parking.blocked([KEY]) == {KEY: Blocked(False, frozenset({"a", "b"}))}
    await commit(store, [a_claim(1, "a", resumes=True)])
    assert await due(store) == [(2, "a"), (2, "b")]


@parking.add()
async def order_none_holds_nothing_but_waits_for_others(harness: Harness) -> None:
    """`order="none"` lifts it (rule 7)."""
    store = await harness.open()
    await park(store, parked(1, order="none", due=LATER), parked(2, order="none"))
    assert await due(store) == [(2, "take_payment")]
    assert dict(await store.parking.blocked([KEY])) == {}

    await park(store, parked(3, due=LATER))
    await park(store, parked(4, order="none"))

    assert await due(store) == [(2, "take_payment")]
    await commit(store, [a_claim(3, resumes=True)])
    assert await due(store) == [(2, "take_payment"), (4, "take_payment")]


@parking.add()
async def a_new_order_of_a_handler_counts_for_what_is_parked(harness: Harness) -> None:
    """Upserted by claim: with the order that it says now."""
    store = await harness.open()
    await park(store, parked(1, due=LATER))
    await park(store, parked(2, attempt=0))

    again = a_claim(1, resumes=True, status="parked")
    await commit(store, [again], parked=[parked(1, order="none", attempt=2, due=LATER)])
    assert await due(store) == [(2, "take_payment")]
    await commit(store, [again], parked=[parked(1, order="key", attempt=3, due=LATER)])
    assert await due(store) == []


@parking.add()
async def blocked_tells_what_waits_behind_each_key(harness: Harness) -> None:
    """What waits behind parked events, for those of the keys that have any."""
    store = await harness.open()
    await park(
        store,
        parked(1, "a", key=b"1"),
        parked(2, "a", key=b"2", order="handler"),
        parked(2, "b", key=b"2", order="handler"),
        parked(3, "a", key=b"3", order="none"),
        parked(4, "a", key=b"4"),
        parked(4, "b", key=b"4", order="handler"),
        parked(5, "a", key=None),
        parked(6, "a", key=b"6", due=None),
    )

    blocked = await store.parking.blocked([OrderingKey("orders", str(number).encode()) for number in range(8)])

    assert {key.key: held for key, held in blocked.items()} == {
        b"1": Blocked(True, blocked[OrderingKey("orders", b"1")].handlers),
        b"2": Blocked(False, frozenset({"a", "b"})),
        b"4": Blocked(True, blocked[OrderingKey("orders", b"4")].handlers),
        b"6": Blocked(True, blocked[OrderingKey("orders", b"6")].handlers),
    }
    assert dict(await store.parking.blocked([])) == {}


@parking.add()
async def what_is_known_of_events_that_arrive_is_what_inbox_and_parked_rows_say(harness: Harness) -> None:
    """What is known of events that arrive: `inbox.seen` of these claims, `parking.blocked` of these keys."""
    store = await harness.open()
    claims, keys = [a_key(number) for number in range(4)], [OrderingKey("orders", b"1"), OrderingKey("orders", b"2")]

    async def known() -> tuple[dict[ClaimKey, bytes], dict[OrderingKey, Blocked]]:
        seen, blocked = await store.look_up(claims, keys)
        assert (seen, blocked) == (await store.inbox.seen(claims), await store.parking.blocked(keys))
        return dict(seen), dict(blocked)

    assert await known() == ({}, {})
    await commit(store, [a_claim(1, content=b"one")])
    assert await known() == ({a_key(1): b"one"}, {})
    await park(store, parked(2, key=b"2", order="none"), parked(3, key=None))
    assert [len(each) for each in await known()] == [3, 0]
    await park(store, parked(4, key=b"2", order="handler"))
    assert [len(each) for each in await known()] == [3, 1]
    assert await store.look_up([], keys) == ({}, await store.parking.blocked(keys))
    assert [len(each) for each in await store.look_up(claims, [])] == [3, 0]


@parking.add()
async def a_halted_key_waits_until_its_dead_letter_is_redriven(harness: Harness) -> None:
    """None: never by itself (the handler says `halt`, and a dead letter came before)."""
    store = await harness.open()
    await park(store, parked(1))
    await park(store, parked(2, attempt=0))
    halted = a_claim(1, resumes=True, status="parked")
    await commit(store, [halted], parked=[parked(1, attempt=5, due=None)], dead_letters=[a_letter(1)])

    assert await due(store, now=LATER) == []
    assert await store.parking.next_due([ORDERS]) is None
    assert (await store.parking.blocked([KEY]))[KEY].all_handlers
    assert await store.dead_letters.purge(failed_before=LATER, limit=9) == 0, "nothing else could free the key"

    (letter,) = await store.dead_letters.list()
    await store.dead_letters.redrive([letter.id], now=LATER)

    assert await due(store, now=LATER) == [(1, "take_payment")]
    await commit(store, [a_claim(1, resumes=True)])
    assert await due(store, now=LATER) == [(2, "take_payment")]
    assert [letter.state for letter in await store.dead_letters.list()] == ["done"]


@parking.add()
async def parked_events_are_counted_for_each_handler(harness: Harness) -> None:
    """How many events are parked for each handler that has any; it is not counted further than `at_most`."""
    store = await harness.open()
    assert dict(await store.parking.counts()) == {}
    await park(store, *(parked(number, key=None) for number in range(5)), parked(5, "write_receipt"))
    await commit(store, [a_claim(9, "refund")])

    assert dict(await store.parking.counts()) == {"take_payment": 5, "write_receipt": 1}
    assert dict(await store.parking.counts(at_most=5)) == {"take_payment": 5, "write_receipt": 1}
    assert dict(await store.parking.counts(at_most=3)) == {"take_payment": 3, "write_receipt": 1}
    await commit(store, [a_claim(5, "write_receipt", resumes=True)])
    assert dict(await store.parking.counts(at_most=3)) == {"take_payment": 3}


@parking.add(requires={"several_services"})
async def parked_events_are_counted_for_each_service(harness: Harness) -> None:
    """Every table of ours is keyed by service."""
    payments, shipping = await harness.open("payments"), await harness.open("shipping")
    await park(payments, parked(1))

    assert dict(await shipping.parking.counts(at_most=3)) == {}
