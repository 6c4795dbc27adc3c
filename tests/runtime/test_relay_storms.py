"""The first-occurrence theorem, tried: whoever emits, fails, is paused or killed, no event of a key is first seen in
the log before its predecessor, and none is lost."""

from __future__ import annotations

import asyncio
import random
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from microflow.clocks import SystemClock
from microflow.stores.postgres import PostgresStore
from microflow.stores.sqlite import outbox
from microflow.transports.local import LocalTransport
from tests.asynchronous import asynchronous
from tests.runtime.bench import bench, read_all
from tests.runtime.emitters import COUNTED, COUNTERS, Emitter, Weather, first_occurrences, storm
from tests.runtime.virtual_loop import virtual

SEEDS = range(8)


async def run_storm(seed: int) -> tuple[dict[str, int], dict[str, list[int]]]:
    """How many events of each key were committed, and the order in which they were first seen in the log."""
    async with bench(partitions=2) as it:
        store = await it.store()
        await store.migrate([COUNTERS])

        async def make(name: str, chance: random.Random, weather: Weather) -> Emitter:
            return Emitter(name, await it.another_store(), it.log, it.clock, chance, weather, asyncio.sleep)

        async def settled() -> bool:
            return (await store.outbox.status()).pending == 0

        await storm(make, seed=seed, settled=settled, sleep=asyncio.sleep)
        committed = dict(store._database.read(COUNTED))
        return committed, first_occurrences(await it.published("Accepted"))


@pytest.mark.parametrize("seed", SEEDS)
def test_in_any_weather_no_event_is_first_seen_before_its_predecessor_and_none_is_lost(seed: int) -> None:
    """Rules 19 and 20."""

    @virtual
    async def scenario() -> None:
        committed, seen = await run_storm(seed)

        assert {key: len(numbers) for key, numbers in seen.items()} == committed
        assert {key: numbers for key, numbers in seen.items() if numbers != sorted(numbers)} == {}

    scenario()


async def run_storm_on_postgres(url: str, seed: int) -> tuple[dict[str, int], dict[str, list[int]]]:
    """As `run_storm`, on a real server and in real time."""
    clock = SystemClock()
    async with AsyncExitStack() as opened:

        async def open_store() -> PostgresStore:
            store = await PostgresStore.open(url, service="shop", clock=clock)
            opened.push_async_callback(store.close)
            return store

        async def make(name: str, chance: random.Random, weather: Weather) -> Emitter:
            weather = replace(weather, longest_pause=3, from_outside=0)
            return Emitter(name, await open_store(), log, clock, chance, weather, asyncio.sleep)

        async def settled() -> bool:
            return (await store.outbox.status()).pending == 0

        store = await open_store()
        await store.migrate([COUNTERS])
        log = LocalTransport.open(Path("log.db"), clock=clock, memory=True, partitions=2)
        opened.push_async_callback(log.close)
        await storm(make, seed=seed, settled=settled, sleep=asyncio.sleep, rounds=25)
        async with store.transaction() as transaction:
            rows = await transaction.connection.fetch(COUNTED)
        return {row["name"]: row["number"] for row in rows}, first_occurrences(await read_all(log, "Accepted"))


@pytest.mark.parametrize("seed", [0, 1, *(pytest.param(seed, marks=pytest.mark.torture) for seed in range(2, 24))])
@asynchronous
async def test_nor_on_postgresql_whose_writers_write_at_once(postgres_url: str, seed: int) -> None:
    """Rules 17, 19 and 20."""
    committed, seen = await run_storm_on_postgres(postgres_url, seed)

    assert {key: len(numbers) for key, numbers in seen.items()} == committed
    assert {key: numbers for key, numbers in seen.items() if numbers != sorted(numbers)} == {}


def test_published_from_memory_whoever_else_has_the_key_in_hand_they_are_out_of_order(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Rule 19: the statement after the locks is what carries it."""
    monkeypatch.setattr(outbox, "_kept_publishers", lambda connection, rows: [row.publisher for row in rows])
    disorder = []

    @virtual
    async def scenario() -> None:
        for seed in SEEDS:
            _, seen = await run_storm(seed)
            disorder.append(any(numbers != sorted(numbers) for numbers in seen.values()))

    scenario()
    assert any(disorder)
