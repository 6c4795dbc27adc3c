"""`handler_changes`: what becomes of what a handler leaves behind when a person says so (rule 12)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from microflow import handler_changes
from microflow.clocks import SystemClock
from microflow.conformance.stores.examples import (
    NOW,
    ORDERS,
    SECOND,
    a_claim,
    a_letter,
    bury,
    commit,
    due,
    park,
    parked,
)
from microflow.errors import MicroflowError, TargetError
from microflow.handler_changes import rename_handler, retire_handler
from microflow.handlers import Trigger
from microflow.ports import DeadLetter, OutboxRow
from microflow.stores.sqlite import SqliteStore
from tests.asynchronous import asynchronous

ACCEPTED = Trigger("OrderAccepted", "orders")


@asynccontextmanager
async def a_store(*, lives: bool = False) -> AsyncIterator[SqliteStore]:
    """A database in which `take_payment` is registered; the process that has it lives, or does not."""
    store = await SqliteStore.open(Path("payments.db"), service="payments", clock=SystemClock(), memory=True)
    until = NOW + SECOND if lives else NOW
    await store.handlers.register({"take_payment": [ACCEPTED]}, owner="host-1", now=NOW, until=until)
    try:
        yield store
    finally:
        await store.close()


@asynchronous
async def test_what_waits_for_a_retired_handler_becomes_dead_letters_with_all_their_bytes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Rule 12: `handlers retire` loses nothing, however much there is."""
    monkeypatch.setattr(handler_changes, "AT_ONCE", 2)
    async with a_store() as store:
        rows = [parked(number, key=str(number % 2).encode(), attempt=number) for number in range(5)]
        await park(store, *rows, replace(parked(9, key=b"0"), claim=parked(9, "ship").claim))

        assert await retire_handler(store, "take_payment", now=NOW + SECOND) == 5

        letters = await store.dead_letters.list(handler="take_payment")
        assert [(letter.claim, letter.record, letter.attempts) for letter in letters] == [
            (row.claim, row.record, row.attempt) for row in rows
        ]
        assert {(letter.reason, letter.error, letter.state) for letter in letters} == {
            ("retired", "CardTimeout: no answer", "dead")
        }
        assert not (await store.handlers.registry(now=NOW)).handlers
        assert dict(await store.parking.counts()) == {"ship": 1}
        assert await due(store) == [(9, "ship")]  # nothing that it waited for is before it any more
        assert list(await commit(store, [a_claim(0)])) == [False]


@asynchronous
async def test_what_becomes_a_dead_letter_is_copied_and_what_was_one_is_not_copied_again() -> None:
    """Rules 7 and 12."""

    def copy_of(letter: DeadLetter) -> OutboxRow:
        return OutboxRow("dlq-payments", letter.record.key, letter.record.value, (), letter.failed_at)

    async with a_store() as store:
        await commit(store, [a_claim(1, status="parked")], parked=[parked(1, due=None)], dead_letters=[a_letter(1)])
        await park(store, parked(2, key=b"order-2"))

        assert await retire_handler(store, "take_payment", now=NOW + SECOND, copy_of=copy_of) == 2

        [copy] = await store.outbox.pending(after=-1, limit=9)
        assert (copy.topic, copy.key) == ("dlq-payments", b"order-2")
        assert len(await store.dead_letters.list()) == 2


@asynchronous
async def test_a_dead_letter_that_halted_its_key_says_what_it_said() -> None:
    """Rule 7's `halt`: the row beside the dead letter goes, the dead letter stays as it was."""
    async with a_store() as store:
        claim = a_claim(1, status="parked")
        await commit(store, [claim], parked=[parked(1, due=None)], dead_letters=[a_letter(1)])
        before = await store.dead_letters.list()

        assert await retire_handler(store, "take_payment", now=NOW) == 1
        assert await store.dead_letters.list() == before
        assert await store.parking.count() == 0


@asynchronous
async def test_one_that_is_being_redriven_is_dead_again() -> None:
    """Rule 29: it went back to a handler that is no more."""
    async with a_store() as store:
        await bury(store, a_letter(1))
        (letter,) = await store.dead_letters.list()
        await store.dead_letters.redrive([letter.id], now=NOW)

        assert await retire_handler(store, "take_payment", now=NOW) == 1
        assert [each.state for each in await store.dead_letters.list()] == ["dead"]


@asynchronous
async def test_a_retired_handler_s_dead_letters_can_be_given_to_another_one() -> None:
    """Rule 12: what was retired by mistake, or too early, is not out of reach."""
    async with a_store() as store:
        await park(store, parked(1))
        await retire_handler(store, "take_payment", now=NOW)

        assert await rename_handler(store, "take_payment", "charge", now=NOW) == 0
        assert [letter.claim.handler for letter in await store.dead_letters.list()] == ["charge"]


@asynchronous
async def test_a_renamed_handler_s_events_wait_for_the_other_name() -> None:
    """Rule 12: `handlers rename` says how many they are."""
    async with a_store() as store:
        await park(store, parked(1), parked(2, attempt=0))

        assert await rename_handler(store, "take_payment", "charge", now=NOW) == 2
        assert [row.claim.handler for row in await store.parking.due([ORDERS], now=NOW, limit=9)] == ["charge"]


@asynchronous
async def test_a_handler_that_a_process_has_is_neither_retired_nor_renamed() -> None:
    """Rule 12: it would go on under a name that means nothing any more."""
    async with a_store(lives=True) as store:
        await park(store, parked(1))
        with pytest.raises(MicroflowError, match=r"The handler take_payment is at work in host-1\."):
            await retire_handler(store, "take_payment", now=NOW)
        with pytest.raises(MicroflowError, match=r"The handler take_payment is at work in host-1\."):
            await rename_handler(store, "take_payment", "charge", now=NOW)

        assert dict(await store.parking.counts()) == {"take_payment": 1}
        assert set((await store.handlers.registry(now=NOW)).handlers) == {"take_payment"}


@asynchronous
async def test_a_handler_that_nothing_is_known_of_is_told_with_what_may_have_been_meant() -> None:
    """Bad use: a typo changes nothing."""
    async with a_store() as store:
        with pytest.raises(TargetError, match=r"Did you mean take_payment\?"):
            await retire_handler(store, "take_paymnet", now=NOW)
        with pytest.raises(TargetError, match=r"There are take_payment\."):
            await rename_handler(store, "ship", "charge", now=NOW)
