"""Every piece of code in docs/your_own_transaction.md runs, as it stands there."""

from __future__ import annotations

import ast
import asyncio
import inspect
import re
import sqlite3
import subprocess
import sys
import textwrap
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import aiosqlite
import asyncpg
import psycopg
import pytest
import sqlalchemy
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from microflow import Event, on
from microflow.clocks import SystemClock
from microflow.connect import connect_store
from microflow.ports import Store
from microflow.settings import Settings
from tests.asynchronous import asynchronous

PAGE = Path(__file__).parents[1] / "docs" / "your_own_transaction.md"
ORDER_ID = "o-1"


class Base(DeclarativeBase):
    pass


class Order(Base):
    __tablename__ = "orders"

    id: Mapped[str] = mapped_column(primary_key=True)
    state: Mapped[str] = mapped_column(server_default="placed")


class OrderPacked(Event, key="order_id"):
    order_id: str


def examples() -> dict[str, str]:
    """The page's code, by the heading that it stands under."""
    found: dict[str, str] = {}
    heading = ""
    for title, code in re.findall(r"^#+ ([^\n]+)$|^```python\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL):
        if title:
            heading = title
        else:
            assert heading not in found, f"two pieces of code under {heading}"
            found[heading] = code
    return found


EXAMPLES = examples()


def test_the_page_has_an_example_for_every_library() -> None:
    assert set(EXAMPLES) == {
        "Your own transaction",
        "asyncpg",
        "psycopg",
        "psycopg, blocking",
        "SQLAlchemy",
        "SQLAlchemy, blocking",
        "Django",
        "In a handler",
        "sqlite3",
        "aiosqlite",
    }


async def execute(title: str, names: Mapping[str, Any]) -> dict[str, Any]:
    """Run what every example shares, then the example; return its names."""
    space: dict[str, Any] = {"order_id": ORDER_ID, "__name__": __name__, **names}
    exec(EXAMPLES["Your own transaction"], space)
    result = eval(compile(EXAMPLES[title], str(PAGE), "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT), space)
    if inspect.isawaitable(result):
        await result
    return space


async def opened(url: str) -> Store:
    settings = Settings(home=Path(), kafka="local:unused", database=url)
    store = await connect_store(settings, service="web", clock=SystemClock())
    async with store.transaction() as transaction:
        await transaction.connection.execute(
            "create table orders (id text primary key, state text not null default 'placed')"
        )
    return store


async def assert_both_are_there(store: Store) -> None:
    async with store.transaction() as transaction:
        assert await transaction.connection.fetchval("select id from orders") == ORDER_ID
    (row,) = await store.outbox.pending(after=-1, limit=10)
    assert (row.topic, row.key) == ("OrderPlaced", ORDER_ID.encode())


@asynchronous
async def test_sqlite3(tmp_path: Path) -> None:
    store = await opened(f"sqlite:///{tmp_path / 'web.db'}")
    await execute("sqlite3", {"closing": closing, "sqlite3": sqlite3, "path": tmp_path / "web.db"})

    await assert_both_are_there(store)
    await store.close()


@asynchronous
async def test_aiosqlite(tmp_path: Path) -> None:
    store = await opened(f"sqlite:///{tmp_path / 'web.db'}")
    await execute("aiosqlite", {"aiosqlite": aiosqlite, "path": tmp_path / "web.db"})

    await assert_both_are_there(store)
    await store.close()


@asynchronous
async def test_asyncpg(postgres_url: str) -> None:
    store = await opened(postgres_url)
    async with asyncpg.create_pool(postgres_url, min_size=1) as pool:
        await execute("asyncpg", {"pool": pool})

    await assert_both_are_there(store)
    await store.close()


@pytest.mark.parametrize("title", ["psycopg", "psycopg, blocking"])
@asynchronous
async def test_psycopg(postgres_url: str, title: str) -> None:
    store = await opened(postgres_url)
    await execute(title, {"psycopg": psycopg, "url": postgres_url})

    await assert_both_are_there(store)
    await store.close()


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'web.db'}"
    postgres_url: str = request.getfixturevalue("postgres_url")
    return postgres_url


@asynchronous
async def test_sqlalchemy(url: str) -> None:
    store = await opened(url)
    driver = "sqlite+aiosqlite" if url.startswith("sqlite") else "postgresql+asyncpg"
    engine = create_async_engine(sqlalchemy.make_url(url).set(drivername=driver))
    await execute("SQLAlchemy", {"AsyncSession": AsyncSession, "engine": engine, "Order": Order})
    await engine.dispose()

    await assert_both_are_there(store)
    await store.close()


@asynchronous
async def test_sqlalchemy_that_blocks(url: str) -> None:
    store = await opened(url)
    driver = "sqlite" if url.startswith("sqlite") else "postgresql+psycopg"
    engine = sqlalchemy.create_engine(sqlalchemy.make_url(url).set(drivername=driver))
    await execute("SQLAlchemy, blocking", {"Session": Session, "engine": engine, "Order": Order})
    engine.dispose()

    await assert_both_are_there(store)
    await store.close()


@asynchronous
async def test_django(url: str) -> None:
    store = await opened(url)
    parts = sqlalchemy.make_url(url)
    database = {
        "ENGINE": f"django.db.backends.{'sqlite3' if parts.drivername == 'sqlite' else 'postgresql'}",
        "NAME": parts.database,
        "HOST": parts.host or "",
        "PORT": str(parts.port or ""),
        "USER": parts.username or "",
    }
    site = f"""
import django
from django.conf import settings
settings.configure(DATABASES={{"default": {database!r}}})
django.setup()
from django.db import connection, models, transaction

class Order(models.Model):
    id = models.TextField(primary_key=True)
    class Meta:
        app_label = "shop"
        db_table = "orders"

order_id = {ORDER_ID!r}
""" + textwrap.dedent(EXAMPLES["Your own transaction"] + EXAMPLES["Django"])
    await asyncio.to_thread(subprocess.run, [sys.executable, "-W", "error", "-c", site], check=True)

    await assert_both_are_there(store)
    await store.close()


@asynchronous
async def test_a_handler(url: str) -> None:
    store = await opened(url)
    names = {"on": on, "AsyncSession": AsyncSession, "Order": Order, "OrderPacked": OrderPacked}
    space = await execute("In a handler", names)
    async with store.transaction() as transaction:
        await transaction.connection.execute("insert into orders (id) values ($1)", ORDER_ID)
        async with transaction.session(AsyncSession) as session:
            emitted = await space["pack_order"](space["OrderPlaced"](order_id=ORDER_ID), session)
            await session.flush()

    assert emitted == OrderPacked(order_id=ORDER_ID)
    async with store.transaction() as transaction:
        assert await transaction.connection.fetchval("select state from orders") == "packed"
    await store.close()
