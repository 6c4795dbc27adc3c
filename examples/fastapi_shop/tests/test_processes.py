"""Both ways with real processes: uvicorn and the shop in one, and storefront, relay and packing apart."""

import asyncio
import os
import re
import signal
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, closing, contextmanager
from pathlib import Path

from httpx import AsyncClient

from examples.fastapi_shop.tests.conftest import Place
from examples.fastapi_shop.tests.waiting import asynchronous, until

FOLDER = Path(__file__).parents[1]
DRIVERS = {"sqlite": "sqlite+aiosqlite", "postgresql": "postgresql+asyncpg"}


@contextmanager
def process(*command: str, environment: Mapping[str, str], log: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """A Python program in the example's folder; killed at the end if it still runs."""
    with log.open("wb") as out:
        started = subprocess.Popen(
            [sys.executable, "-m", *command], cwd=FOLDER, env={**os.environ, **environment}, stdout=out, stderr=out
        )
    try:
        yield started
    finally:
        started.kill()
        started.wait()


@asynchronous
async def test_uvicorn_stops_the_service_after_the_last_request(place: Place, tmp_path: Path) -> None:
    first, second = tmp_path / "first.log", tmp_path / "second.log"
    with process("uvicorn", "shop:app", "--port", "0", environment=place.environment, log=first) as server:
        async with customer_of(first) as customer:
            assert (await customer.put("/orders/o-1", json={"item": "teapot"})).status_code == 201
        server.send_signal(signal.SIGTERM)
        await asyncio.to_thread(server.wait, 30)

    assert "Application shutdown complete" in first.read_text()
    assert "Traceback" not in first.read_text()
    with process("uvicorn", "shop:app", "--port", "0", environment=place.environment, log=second):
        async with customer_of(second) as customer:

            async def packed() -> object:
                return (await customer.get("/orders/o-1")).json().get("state") == "packed"

            await until(packed)


@asynchronous
async def test_an_order_reaches_a_service_with_a_database_of_its_own(place: Place, tmp_path: Path) -> None:
    parcels = tmp_path / "packing.db"
    scheme, _, rest = place.database.partition("://")
    environment = {
        **place.environment,
        "STOREFRONT_DATABASE": f"{DRIVERS[scheme]}://{rest}",
        "MICROFLOW_PACKING_DATABASE": f"sqlite:///{parcels}",
    }
    relay, packing, web = (tmp_path / f"{name}.log" for name in ("relay", "packing", "web"))
    with (
        process("microflow", "relay", "--database", place.database, environment=environment, log=relay),
        process("microflow", "run", "packing.py", environment=environment, log=packing),
    ):
        await until(lambda: says(relay, "ready"))
        await until(lambda: says(packing, "ready"))
        with process("uvicorn", "storefront:app", "--port", "0", environment=environment, log=web):
            async with customer_of(web) as customer:
                assert (await customer.put("/orders/o-1", json={"item": "teapot"})).status_code == 201
                assert (await customer.put("/orders/o-1", json={"item": "teapot"})).status_code == 409
                assert (await customer.put("/orders/o-2", json={"item": "cup"})).status_code == 201

        async def packed() -> object:
            with closing(sqlite3.connect(parcels)) as connection:
                rows = connection.execute("select order_id, item from parcels order by order_id").fetchall()
            return rows == [("o-1", "teapot"), ("o-2", "cup")]

        await until(packed)


@asynccontextmanager
async def customer_of(log: Path) -> AsyncIterator[AsyncClient]:
    """A customer of the server that writes this log, as soon as it serves."""
    try:
        await until(lambda: says(log, "Uvicorn running on "))
    except TimeoutError:
        raise AssertionError(f"it does not serve: {log.read_text()}") from None  # noqa: ASYNC240 - a few lines
    address = re.search(r"Uvicorn running on (\S+)", log.read_text())  # noqa: ASYNC240 - a few lines
    assert address is not None
    async with AsyncClient(base_url=address[1]) as customer:
        yield customer


async def says(log: Path, word: str) -> bool:
    return word in log.read_text()  # noqa: ASYNC240 - a few lines
