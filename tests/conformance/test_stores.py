"""Every store keeps the promises of a store: SQLite in a file, in memory, with two sets of connections; PostgreSQL."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from microflow.clocks import SystemClock
from microflow.conformance.stores import Abilities, Scenario, scenarios
from microflow.embedded.database import Database
from microflow.ports import Store
from microflow.stores.postgres import PostgresStore
from microflow.stores.sqlite import SqliteStore

ABILITIES = Abilities()
ON_POSTGRES = Abilities(any_decimal=True, writers_at_once=True)


class SqliteHarness:
    """Handles on one file, all on the process's connections; or `apart`, each on connections of its own."""

    abilities = ABILITIES

    def __init__(self, path: Path, *, apart: bool = False) -> None:
        self._path = path
        self._apart = apart
        self._stores: list[SqliteStore] = []
        self._databases: list[Database] = []

    async def open(self, service: str = "payments") -> Store:
        before = dict(Database._opened)
        store = await SqliteStore.open(self._path, service=service, clock=SystemClock())
        self._stores.append(store)
        if self._apart:
            for key in set(Database._opened) - set(before):
                self._databases.append(Database._opened.pop(key))
        return store

    async def close(self) -> None:
        for store in self._stores:
            await store.close()


class SqliteMemoryHarness(SqliteHarness):
    """Handles on one file in a temporary folder, which is never synced."""

    async def open(self, service: str = "payments") -> Store:
        if not self._stores:
            store = await SqliteStore.open(self._path, service=service, clock=SystemClock(), memory=True)
            self._path = store.path
            self._stores.append(store)
            return store
        return await super().open(service)


class PostgresHarness:
    """Handles on one database, each with connections of its own."""

    abilities = ON_POSTGRES

    def __init__(self, url: str) -> None:
        self._url = url
        self._stores: list[PostgresStore] = []

    async def open(self, service: str = "payments") -> Store:
        store = await PostgresStore.open(self._url, service=service, clock=SystemClock())
        self._stores.append(store)
        return store

    async def close(self) -> None:
        for store in self._stores:
            await store.close()


@pytest.mark.parametrize("scenario", scenarios(ABILITIES), ids=str)
def test_the_sqlite_store_in_a_file_keeps_its_promise_that(scenario: Scenario, tmp_path: Path) -> None:
    asyncio.run(_run(scenario, SqliteHarness(tmp_path / "payments.db")))


@pytest.mark.parametrize("scenario", scenarios(ABILITIES), ids=str)
def test_the_sqlite_store_in_memory_keeps_its_promise_that(scenario: Scenario, tmp_path: Path) -> None:
    asyncio.run(_run(scenario, SqliteMemoryHarness(tmp_path / "payments.db")))


@pytest.mark.parametrize(
    "scenario", [s for s in scenarios(ABILITIES) if s.requires or "transaction" in s.name], ids=str
)
def test_two_sets_of_connections_to_one_file_keep_their_promise_that(scenario: Scenario, tmp_path: Path) -> None:
    asyncio.run(_run(scenario, SqliteHarness(tmp_path / "payments.db", apart=True)))


@pytest.mark.parametrize("scenario", scenarios(ON_POSTGRES), ids=str)
def test_the_postgresql_store_keeps_its_promise_that(scenario: Scenario, postgres_url: str) -> None:
    asyncio.run(_run(scenario, PostgresHarness(postgres_url)))


async def _run(scenario: Scenario, harness: SqliteHarness | PostgresHarness) -> None:
    try:
        await scenario(harness)
    finally:
        await harness.close()
