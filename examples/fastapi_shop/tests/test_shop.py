"""The shop in one process: what is placed over HTTP is packed, once, and what is refused is announced to nobody."""

import logging
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from httpx import ASGITransport, AsyncClient

from examples.fastapi_shop import shop
from examples.fastapi_shop.tests.conftest import Place
from examples.fastapi_shop.tests.waiting import asynchronous, until
from microflow import Event, Service, on, running
from servers.postgres import Postgres

heard: list[str] = []


class OrderPacked(Event):
    order_id: str


@on("OrderPacked")
async def hear(packed: OrderPacked) -> None:
    heard.append(packed.order_id)


listener = Service("listener")


@asynccontextmanager
async def opened() -> AsyncIterator[AsyncClient]:
    """The application as a server runs it, and a customer."""
    transport = ASGITransport(shop.app)
    async with (
        shop.app.router.lifespan_context(shop.app),
        AsyncClient(transport=transport, base_url="http://shop") as customer,
    ):
        yield customer


@asynchronous
async def test_an_order_placed_over_http_is_packed(place: Place) -> None:
    async with opened() as customer:
        placed = await customer.put("/orders/o-1", json={"item": "teapot"})
        assert (placed.status_code, placed.json()) == (201, {"order_id": "o-1", "state": "placed"})

        async def packed() -> object:
            order = await customer.get("/orders/o-1")
            return order.json() == {"order_id": "o-1", "item": "teapot", "state": "packed"}

        await until(packed)


@pytest.mark.local_servers("postgres")
def test_service_and_endpoints_share_a_database_that_asks_for_a_password(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @asynchronous
    async def place_one() -> int:
        async with opened() as customer:
            return (await customer.put("/orders/o-1", json={"item": "teapot"})).status_code

    with Postgres(durable=False, password="hunter2 @/?") as server:
        monkeypatch.setenv("MICROFLOW_KAFKA", f"local:{tmp_path / 'log.db'}")
        monkeypatch.setenv("MICROFLOW_DATABASE", server.url)

        assert place_one() == 201


@asynchronous
async def test_an_order_that_is_refused_is_announced_to_nobody(place: Place) -> None:
    heard.clear()
    async with running(sys.modules[__name__]), opened() as customer:
        await customer.put("/orders/o-1", json={"item": "teapot"})
        refused = await customer.put("/orders/o-1", json={"item": "teapot"})
        assert refused.status_code == 409
        await customer.put("/orders/o-2", json={"item": "cup"})

        async def all_heard() -> bool:
            return "o-2" in heard and "o-1" in heard

        await until(all_heard)

    assert sorted(heard) == ["o-1", "o-2"]


@asynchronous
async def test_what_is_placed_just_before_the_end_is_packed_before_it(place: Place) -> None:
    """The server leaves the lifespan when the last request is answered, and the lifespan lets the service finish."""
    async with opened() as customer:
        for number in range(20):
            await customer.put(f"/orders/o-{number}", json={"item": "teapot"})

    async with opened() as customer:

        async def packed() -> bool:
            states = [(await customer.get(f"/orders/o-{number}")).json()["state"] for number in range(20)]
            return set(states) == {"packed"}

        await until(packed)


@asynchronous
async def test_signals_and_logs_stay_the_servers(place: Place) -> None:
    def handlers() -> object:
        signals = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
        return signals, list(logging.root.handlers), logging.root.level, logging.getLogger("microflow").handlers

    before = handlers()
    async with opened():
        assert handlers() == before
    assert handlers() == before
