"""What may run is kept in the parked rows: it must always be what the rule says, and cost what is found."""

from __future__ import annotations

import asyncio
import itertools
import sqlite3
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from microflow.conformance.stores.examples import NOW, ORDERS, SECOND, a_claim, a_letter, commit, parked
from microflow.ports import ClaimKey, DeadLetter, Order, OrderingKey, Parked
from microflow.stores.sqlite import SqliteStore
from microflow.stores.sqlite.parking import SQL
from tests.asynchronous import asynchronous
from tests.stores.opened import opened

HANDLERS = ("a", "b", "c")
KEYS = (b"1", b"1", b"1", b"2", None)


@dataclass(frozen=True)
class Step:
    """One thing that happens: an event is parked, or one that is parked (`event` counts through them) goes on."""

    what: str
    event: int
    handler: str
    order: Order
    due: datetime | None


steps = st.builds(
    Step,
    what=st.sampled_from(["park", "park", "park", "done", "done", "again", "dead", "halt", "redrive"]),
    event=st.integers(0, 9),
    handler=st.sampled_from(HANDLERS),
    order=st.sampled_from(["key", "key", "handler", "none"]),
    due=st.sampled_from([NOW, NOW + SECOND, NOW + 2 * SECOND, None]),
)


class Model:
    """The rule, said as plainly as possible, over a list of parked events in their order."""

    def __init__(self) -> None:
        self.parked: list[Parked] = []
        self.claimed: set[ClaimKey] = set()
        self.dead: dict[ClaimKey, DeadLetter] = {}

    def find(self, key: ClaimKey) -> Parked | None:
        return next((event for event in self.parked if event.claim == key), None)

    def waits_for(self, later: Parked, earlier: Parked) -> bool:
        if later.record.key is None or later.record.key != earlier.record.key:
            return False
        if earlier.order == "key":
            return earlier.claim.digest != later.claim.digest
        return earlier.order == "handler" and earlier.claim.handler == later.claim.handler

    def free(self) -> list[Parked]:
        return [
            event
            for place, event in enumerate(self.parked)
            if not any(self.waits_for(event, earlier) for earlier in self.parked[:place])
        ]

    def due(self, now: datetime) -> set[ClaimKey]:
        return {event.claim for event in self.free() if event.due is not None and event.due <= now}

    def next_due(self) -> datetime | None:
        return min((event.due for event in self.free() if event.due is not None), default=None)

    def blocked(self, key: bytes) -> tuple[bool, frozenset[str]] | None:
        of_key = [event for event in self.parked if event.record.key == key]
        everything = any(event.order == "key" for event in of_key)
        handlers = frozenset(event.claim.handler for event in of_key if event.order == "handler")
        return (everything, handlers) if everything or handlers else None


async def take(step: Step, store: SqliteStore, model: Model) -> None:
    if step.what == "park":
        await park(step, store, model)
    elif step.what == "redrive" and model.dead:
        await redrive(store, model, sorted(model.dead)[step.event % len(model.dead)])
    elif step.what != "redrive" and model.parked:
        await go_on(step, store, model, model.parked[step.event % len(model.parked)])


async def park(step: Step, store: SqliteStore, model: Model) -> None:
    event = parked(step.event, step.handler, key=KEYS[step.event % len(KEYS)], order=step.order, due=step.due)
    if event.claim not in model.claimed:
        await commit(store, [a_claim(step.event, step.handler, status="parked")], parked=[event])
        model.claimed.add(event.claim)
        model.parked.append(event)


async def go_on(step: Step, store: SqliteStore, model: Model, event: Parked) -> None:
    number, handler, key = event.record.offset, event.claim.handler, event.record.key
    claim = a_claim(number, handler, resumes=True)
    letter = replace(a_letter(number, handler, key=key), order=step.order)
    if step.what == "done":
        await commit(store, [claim])
        model.parked.remove(event)
    elif step.what == "dead":
        await commit(store, [claim._replace(status="dead")], dead_letters=[letter])
        model.parked.remove(event)
        model.dead[event.claim] = letter
    else:
        again = replace(event, order=step.order, due=None if step.what == "halt" else step.due)
        letters = [letter] if step.what == "halt" else []
        await commit(store, [claim._replace(status="parked")], parked=[again], dead_letters=letters)
        model.parked[model.parked.index(event)] = again
        model.dead.update({event.claim: letter} if step.what == "halt" else {})


async def redrive(store: SqliteStore, model: Model, key: ClaimKey) -> None:
    stored = next(letter for letter in await store.dead_letters.list() if letter.claim == key)
    await store.dead_letters.redrive([stored.id], now=NOW)
    letter = model.dead.pop(key)
    there = model.find(key)
    if there is None:
        model.parked.append(Parked(key, letter.record, letter.order, 0, NOW))
    else:
        model.parked[model.parked.index(there)] = replace(there, due=NOW)


async def agree(store: SqliteStore, model: Model) -> None:
    for now in (NOW - SECOND, NOW, NOW + SECOND, NOW + timedelta(days=1)):
        found = await store.parking.due([ORDERS], now=now, limit=100)
        assert {event.claim for event in found} == model.due(now)
    assert await store.parking.next_due([ORDERS]) == model.next_due()
    assert await store.parking.count() == len(model.parked)
    for key in KEYS:
        if key is not None:
            ordering = OrderingKey("orders", key)
            assert (await store.parking.blocked([ordering])).get(ordering) == model.blocked(key)


@settings(max_examples=100, deadline=None)
@given(st.lists(steps, max_size=30))
def test_what_may_run_is_always_what_the_rule_says(happens: list[Step]) -> None:
    async def follow() -> None:
        model = Model()
        async with opened(Path("parked.db"), memory=True) as store:
            for step in happens:
                await take(step, store, model)
                await agree(store, model)

    asyncio.run(follow())


@asynchronous
async def test_no_statement_scans_what_is_parked(tmp_path: Path) -> None:
    async with opened(tmp_path / "parked.db") as store:
        connection = sqlite3.connect(store.path)
        plans = {name: plan(connection, sql) for name, sql in SQL.items()}
        connection.close()

    scanning = {name: [step for step in steps if scans(step)] for name, steps in plans.items()}
    # What it scans is the subquery's own result, which is bounded.
    assert {name: steps for name, steps in scanning.items() if steps and name != "counts"} == {}
    assert any("microflow_parked_next" in step for step in plans["due"])


def plan(connection: sqlite3.Connection, sql: str) -> list[str]:
    parameters: Any = [1] * max(sql.count("?"), 20)
    highest = next(count for count in range(len(parameters) + 1) if accepts(connection, sql, parameters[:count]))
    return [row[3] for row in connection.execute(f"explain query plan {sql}", parameters[:highest])]


def accepts(connection: sqlite3.Connection, sql: str, parameters: list[Any]) -> bool:
    try:
        connection.execute(f"explain {sql}", parameters)
    except sqlite3.ProgrammingError:
        return False
    return True


def scans(step: str) -> bool:
    return step.startswith("SCAN") and "CONSTANT ROW" not in step and "json_each" not in step  # a list that was given


@pytest.mark.parametrize("order", ["key", "handler", "none"])
def test_asking_costs_what_is_found_however_much_waits(order: Order) -> None:
    async def measure(waiting: int) -> list[int]:
        async with opened(Path("parked.db"), memory=True) as store:
            events = [
                parked(number, key=b"hot", order=order, due=NOW if number == 0 else NOW + SECOND, attempt=0)
                for number in range(waiting)
            ]
            claims = [a_claim(number, status="parked") for number in range(waiting)]
            await commit(store, claims, parked=events)
            reader = store._database.reader
            costs = [
                await cost(reader, lambda: store.parking.due([ORDERS], now=NOW, limit=10)),
                await cost(reader, lambda: store.parking.next_due([ORDERS])),
                await cost(reader, lambda: store.parking.blocked([OrderingKey("orders", b"hot")])),
            ]
            writer = store._database.writer
            return [*costs, await cost(writer, lambda: commit(store, [a_claim(0, resumes=True)]))]

    few, many = asyncio.run(measure(20)), asyncio.run(measure(2000))

    assert all(after < 2 * before + 50 for before, after in zip(few, many, strict=True)), (few, many)


async def cost(connection: sqlite3.Connection, ask: Any) -> int:
    """How many instructions SQLite needs."""
    steps = itertools.count()
    connection.set_progress_handler(lambda: next(steps) and None, 1)
    await ask()
    connection.set_progress_handler(None, 1)
    return next(steps)
