"""Events from programs that are no services: committed with the caller's own transaction, or not at all (rule 21)."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import aiosqlite
import pytest

from microflow import ContractError, DefinitionError, Event, Outbox, Service, StoreError, on, running
from microflow.records import MAX_RECORD_BYTES
from microflow.reports import Report
from microflow.settings import Settings
from tests.asynchronous import asynchronous

PATIENCE = 20.0


class OrderPlaced(Event, key="order_id"):
    order_id: str


class Nameless(Event):
    order_id: str


class Huge(Event, key="order_id"):
    order_id: str
    pad: str


@on("OrderPlaced")
async def accept(order: OrderPlaced) -> None:
    """Whatever is placed is handled."""


service = Service("shop")


class Shop:
    """The service, running on files; `handled` are the orders it has handled, in order."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / ".microflow" / "shop.db"
        self.handled: list[str | None] = []
        self._changed = asyncio.Event()

    def observe(self, report: Report) -> None:
        if report.outcome == "done":
            self.handled.append((report.record.key or b"").decode())
            self._changed.set()

    async def has_handled(self, *orders: str) -> None:
        """Return once exactly these have been handled."""
        async with asyncio.timeout(PATIENCE):
            while self.handled != list(orders):
                self._changed.clear()
                await self._changed.wait()


@asynccontextmanager
async def a_shop(folder: Path) -> AsyncIterator[Shop]:
    shop = Shop(folder)
    settings = Settings(home=folder, kafka=f"local:{folder / '.microflow' / 'log.db'}")
    async with running(service, settings=settings, observe=shop.observe):
        yield shop


@asynchronous
async def test_what_is_appended_is_published_when_the_caller_commits(tmp_path: Path) -> None:
    async with a_shop(tmp_path) as shop:
        with closing(sqlite3.connect(shop.file)) as connection:
            connection.execute("create table orders (id text)")
            connection.execute("insert into orders values ('o-1')")
            Outbox("web").append_sync(connection, OrderPlaced(order_id="o-1"))
            connection.commit()

        await shop.has_handled("o-1")


@asynchronous
async def test_what_is_appended_and_rolled_back_leaves_nothing(tmp_path: Path) -> None:
    async with a_shop(tmp_path) as shop:
        with closing(sqlite3.connect(shop.file)) as connection:
            Outbox("web").append_sync(
                connection, OrderPlaced(order_id="gone")
            )  # the first statement of its transaction
            connection.rollback()
            Outbox("web").append_sync(connection, OrderPlaced(order_id="o-1"))
            connection.commit()

        await shop.has_handled("o-1")


@asynchronous
async def test_an_asynchronous_connection_is_as_good(tmp_path: Path) -> None:
    async with a_shop(tmp_path) as shop:
        async with aiosqlite.connect(shop.file) as connection:
            await Outbox("web").append(connection, OrderPlaced(order_id="gone"))
            await connection.rollback()
            await Outbox("web").append(connection, OrderPlaced(order_id="o-1"), correlation_id="flow-1")
            await connection.commit()

        await shop.has_handled("o-1")


@pytest.mark.parametrize("name", ["", "a b", "x\ny", "Web", "ü", "a" * 49, None])
def test_its_name_is_written_as_a_services(name: Any) -> None:
    with pytest.raises(DefinitionError, match="is no name for a service"):
        Outbox(name)


def test_a_root_event_needs_a_key_and_must_fit_into_a_record(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "web.db")) as connection:
        with pytest.raises(ContractError, match="has no key"):
            Outbox("web").append_sync(connection, Nameless(order_id="o-1"))
        with pytest.raises(ContractError, match="The key of Huge is empty, and a root event needs one"):
            Outbox("web").append_sync(connection, Huge(order_id="", pad=""))
        with pytest.raises(ContractError, match="bytes, and the log takes at most"):
            Outbox("web").append_sync(connection, Huge(order_id="o-1", pad="x" * MAX_RECORD_BYTES))


def test_a_database_without_an_outbox_is_told_with_what_to_type(tmp_path: Path) -> None:
    path = tmp_path / "web shop.db"
    with closing(sqlite3.connect(path)) as connection, pytest.raises(StoreError) as refused:
        Outbox("web").append_sync(connection, OrderPlaced(order_id="o-1"))

    assert refused.value.fix == f"microflow relay --database 'sqlite:///{path}'"
    assert refused.value.__suppress_context__


@asynchronous
async def test_an_asynchronous_connection_without_an_outbox_is_told_the_same(tmp_path: Path) -> None:
    async with aiosqlite.connect(tmp_path / "web.db") as connection:
        with pytest.raises(StoreError) as refused:
            await Outbox("web").append(connection, OrderPlaced(order_id="o-1"))

    assert refused.value.fix == f"microflow relay --database sqlite:///{tmp_path}/web.db"
    assert refused.value.__suppress_context__


def test_a_database_in_memory_has_no_path_to_type() -> None:
    with closing(sqlite3.connect(":memory:")) as connection, pytest.raises(StoreError, match="This database has no"):
        Outbox("web").append_sync(connection, OrderPlaced(order_id="o-1"))
