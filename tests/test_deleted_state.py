"""A developer deletes the state to begin anew, under a service that still runs: the service ends and says so."""

from __future__ import annotations

import asyncio
import os
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from microflow import Event, Outbox, Service, on, running
from microflow.clocks import SystemClock
from microflow.errors import LogGone, StoreGone
from microflow.reports import Report
from microflow.settings import Settings
from microflow.stores.sqlite import SqliteStore
from tests.asynchronous import asynchronous

AT_MOST = 5.0


class OrderPlaced(Event, key="order_id"):
    order_id: str


@on("OrderPlaced")
async def accept(order: OrderPlaced) -> None:
    """Whatever is placed is handled."""


service = Service("shop")


def everything(folder: Path) -> None:
    shutil.rmtree(folder)


def the_database(folder: Path) -> None:
    for file in folder.glob("shop.db*"):
        file.unlink()


def the_log(folder: Path) -> None:
    (folder / "log.db").unlink()


async def run_shop(folder: Path, reports: list[Report], *, disturb: Callable[[Path], None]) -> None:
    """Run the service, do something to the folder with its state, and wait for its end."""
    state = folder / ".microflow"
    settings = Settings(home=folder, kafka=f"local:{state / 'log.db'}")
    async with asyncio.timeout(AT_MOST), running(service, settings=settings, observe=reports.append):
        disturb(state)
        await asyncio.Event().wait()


@pytest.mark.parametrize("delete", [everything, the_database, the_log])
def test_an_idle_service_notices_that_its_state_was_deleted(delete: Callable[[Path], None], tmp_path: Path) -> None:
    @asynchronous
    async def scenario() -> None:
        with pytest.raises((StoreGone, LogGone), match="is gone: it was deleted while it was open") as ended:
            await run_shop(tmp_path, [], disturb=delete)

        assert "Start again." in str(ended.value)

    scenario()


@asynchronous
async def test_a_service_notices_that_another_file_has_taken_the_place_of_its_own(tmp_path: Path) -> None:
    def replace(state: Path) -> None:
        (state / "other.db").touch()
        (state / "other.db").rename(state / "log.db")

    with pytest.raises(LogGone, match="was replaced by another file while it was open"):
        await run_shop(tmp_path, [], disturb=replace)


@asynchronous
async def test_nothing_is_done_into_a_file_that_was_deleted(tmp_path: Path) -> None:
    store = await SqliteStore.open(tmp_path / "shop.db", service="shop", clock=SystemClock())
    try:
        the_database(tmp_path)

        with pytest.raises(StoreGone):
            await store.bind("cluster")
        with pytest.raises(StoreGone):
            await store.probe()
        assert os.listdir(tmp_path) == []  # and no other one was made
    finally:
        await store.close()


@asynchronous
async def test_no_event_is_reported_as_done_when_its_database_was_deleted(tmp_path: Path) -> None:
    reports: list[Report] = []

    def disturb(state: Path) -> None:
        with closing(sqlite3.connect(state / "shop.db")) as connection:
            Outbox("web").append_sync(connection, OrderPlaced(order_id="o-1"))
            the_database(state)
            connection.commit()

    with pytest.raises(StoreGone):
        await run_shop(tmp_path, reports, disturb=disturb)

    assert reports == []
