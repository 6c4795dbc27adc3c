"""An event is appended through the caller's own library: committed with its transaction, or not at all (rule 21)."""

from __future__ import annotations

import asyncio
import contextlib
import random
import re
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass
from pathlib import Path

import aiosqlite
import asyncpg
import psycopg
import pytest
import sqlalchemy
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

from microflow import Event, MicroflowError, Outbox, StoreError
from microflow.clocks import SystemClock
from microflow.connect import connect_store
from microflow.errors import IdentityError
from microflow.ports import Changes, Record, Store
from microflow.relay import Relay
from microflow.settings import Settings
from microflow.testing.seen_events import RecordedTransport
from microflow.transports.local import LocalTransport
from tests.asynchronous import asynchronous
from tests.callers import ON_POSTGRES, ON_SQLITE, Blocking, Opening


class OrderPlaced(Event, key="order_id", topic="orders"):
    order_id: str


@dataclass(frozen=True)
class Shop:
    """A database with a table of the caller's own and an outbox, and the library that a caller uses on it."""

    store: Store
    url: str
    open: Opening
    outbox: Outbox

    async def orders(self) -> list[str]:
        async with self.store.transaction() as transaction:
            return [row["id"] for row in await transaction.connection.fetch("select id from orders order by id")]

    async def waiting(self) -> list[str]:
        """What the outbox holds that is committed."""
        return [(row.key or b"").decode() for row in await self.store.outbox.pending(after=-1, limit=100)]


async def opened(url: str) -> Store:
    settings = Settings(home=Path(), kafka="local:unused", database=url)
    store = await connect_store(settings, service="web", clock=SystemClock())
    async with store.transaction() as transaction:
        await transaction.connection.execute("create table orders (id text primary key)")
    return store


LIBRARIES = [("sqlite", library) for library in ON_SQLITE] + [("postgresql", library) for library in ON_POSTGRES]


@pytest.fixture(params=LIBRARIES, ids=lambda each: f"{each[1]} on {each[0]}")
def caller(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Opening]:
    """The URL of an empty database, and how a library opens it."""
    database, library = request.param
    if database == "sqlite":
        return f"sqlite:///{tmp_path / 'shop.db'}", ON_SQLITE[library]
    return request.getfixturevalue("postgres_url"), ON_POSTGRES[library]


@asynccontextmanager
async def a_shop(caller: tuple[str, Opening]) -> AsyncIterator[Shop]:
    url, opening = caller
    store = await opened(url)
    try:
        yield Shop(store, url, opening, Outbox("web"))
    finally:
        await store.close()


@asynchronous
async def test_what_is_appended_is_committed_with_the_callers_own_writes_and_published_once(
    caller: tuple[str, Opening],
) -> None:
    """Rule 21."""
    async with a_shop(caller) as shop:
        async with shop.open(shop.url) as user:
            await user.execute("insert into orders values ('o-1')")
            await user.append(shop.outbox, OrderPlaced(order_id="o-1"))
            await user.append(shop.outbox, OrderPlaced(order_id="o-1"))
            assert await shop.waiting() == []

            await user.commit()

            assert await shop.orders() == ["o-1"]
            assert await shop.waiting() == ["o-1", "o-1"]
        records = await published(shop.store)

    assert [record.key for record in records] == [b"o-1", b"o-1"]
    headers = [dict(record.headers) for record in records]
    assert {each["ce_type"] for each in headers} == {b"OrderPlaced"}
    assert {each["ce_source"] for each in headers} == {b"/services/web"}
    assert len({each["ce_id"] for each in headers}) == 2


@asynchronous
async def test_what_is_appended_as_a_sessions_first_statement_is_rolled_back_with_it(
    caller: tuple[str, Opening],
) -> None:
    """Rule 21: "rolled back with it, always"; a library that has not begun must not be gone around."""
    async with a_shop(caller) as shop, shop.open(shop.url) as user:
        await user.append(shop.outbox, OrderPlaced(order_id="o-1"))
        await user.rollback()
        assert await shop.waiting() == []
        await user.append(shop.outbox, OrderPlaced(order_id="o-2"))
        await user.execute("insert into orders values ('o-2')")
        await user.rollback()

        assert (await shop.orders(), await shop.waiting()) == ([], [])

        await user.append(shop.outbox, OrderPlaced(order_id="o-3"))
        await user.commit()
        assert await shop.waiting() == ["o-3"]


@asynchronous
async def test_what_is_never_committed_is_never_there(caller: tuple[str, Opening]) -> None:
    """Rule 21: whoever drops the connection has rolled back."""
    async with a_shop(caller) as shop:
        async with shop.open(shop.url) as user:
            await user.append(shop.outbox, OrderPlaced(order_id="o-1"))

        assert await shop.waiting() == []


@asynchronous
async def test_a_savepoint_that_is_rolled_back_takes_the_event_with_it(caller: tuple[str, Opening]) -> None:
    """Rule 21: "as the caller's library sees it"."""
    async with a_shop(caller) as shop, shop.open(shop.url) as user:
        await user.execute("insert into orders values ('o-1')")
        await user.append(shop.outbox, OrderPlaced(order_id="o-1"))
        with contextlib.suppress(KeyError):
            async with user.savepoint():
                await user.append(shop.outbox, OrderPlaced(order_id="undone"))
                raise KeyError
        async with user.savepoint():
            await user.append(shop.outbox, OrderPlaced(order_id="kept"))
        await user.commit()

        assert await shop.waiting() == ["o-1", "kept"]


@asynchronous
async def test_a_database_without_an_outbox_is_told_with_what_to_type(caller: tuple[str, Opening]) -> None:
    """One error, whichever library it came from, and no driver's error behind it."""
    url, opening = caller
    async with opening(url) as user:
        with pytest.raises(StoreError, match="has no outbox yet") as refused:
            await user.append(Outbox("web"), OrderPlaced(order_id="o-1"))

    assert refused.value.fix is not None
    assert re.match(r"microflow relay --database (sqlite:///|postgresql://)", refused.value.fix)
    assert refused.value.__suppress_context__


@asynchronous
async def test_any_other_error_is_the_librarys_own(caller: tuple[str, Opening]) -> None:
    """Whoever retries on what the library raises goes on doing so."""
    async with a_shop(caller) as shop, shop.open(shop.url) as user:
        await user.execute("insert into orders values ('o-1')")
        await user.commit()
        await break_outbox(shop.store)

        with pytest.raises(Exception) as raised:  # noqa: PT011 - which one it is differs, whose it is does not
            await user.append(shop.outbox, OrderPlaced(order_id="o-1"))

    assert not isinstance(raised.value, MicroflowError)
    assert type(raised.value).__module__.partition(".")[0] in {
        each.__module__.partition(".")[0] for each in type(user.connection).__mro__
    } | {"sqlite3"}


async def break_outbox(store: Store) -> None:
    """Let a constraint refuse what is appended."""
    async with store.transaction() as transaction:
        connection = transaction.connection
        if hasattr(connection.raw, "fetchrow"):
            await connection.execute("alter table microflow.outbox add check (service <> 'web')")
        else:
            await connection.execute(
                "create trigger no before insert on microflow_outbox begin select raise(abort, 'no'); end"
            )


# ── nobody waits for a caller ─────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(params=ON_POSTGRES)
def postgres_caller(request: pytest.FixtureRequest, postgres_url: str) -> tuple[str, Opening]:
    return postgres_url, ON_POSTGRES[request.param]


@asynchronous
async def test_a_transaction_left_open_after_an_append_stalls_nobody(postgres_caller: tuple[str, Opening]) -> None:
    """Rule 21: "takes no key lock"; SQLite has one writer at a time, whoever it is."""
    async with a_shop(postgres_caller) as shop, shop.open(shop.url) as idle:
        await idle.append(shop.outbox, OrderPlaced(order_id="o-1"))

        async with asyncio.timeout(10):
            async with shop.open(shop.url) as other:
                await other.append(shop.outbox, OrderPlaced(order_id="o-1"))
                await other.append(shop.outbox, OrderPlaced(order_id="o-2"))
                await other.commit()
            async with shop.store.transaction() as transaction:
                row = (await shop.store.outbox.pending(after=-1, limit=1))[0]
                await transaction.claim([], now=row.created_at)
                await transaction.write(Changes(outbox=[row]))
            first = await published(shop.store)
        await idle.commit()
        second = await published(shop.store)

    assert sorted(record.key or b"" for record in first) == [b"o-1", b"o-1", b"o-2"]
    assert [record.key for record in second] == [b"o-1"]


async def published(store: Store) -> list[Record]:
    """What a relay publishes now."""
    records: list[Record] = []
    log = LocalTransport.open(Path("log.db"), clock=SystemClock(), memory=True)
    try:
        transport = RecordedTransport(log, records.append)
        relay = Relay(store.outbox, transport, clock=SystemClock(), owner="test", chance=random.random)
        await relay.publish_pending()
        await relay.release()
    finally:
        await log.close()
    return records


@asynchronous
async def test_a_role_that_may_insert_there_and_no_more_can_append_whatever_its_search_path(postgres_url: str) -> None:
    """Names are qualified, and nothing is read."""
    store, outbox = await opened(postgres_url), Outbox("web")
    role = f"web_{sqlalchemy.make_url(postgres_url).database}"
    admin = await asyncpg.connect(postgres_url)
    await admin.execute(f"create role {role} login")
    web = await asyncpg.connect(postgres_url, user=role, server_settings={"search_path": "pg_temp"})
    try:
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await outbox.append(web, OrderPlaced(order_id="o-1"))
        await admin.execute(f"grant usage on schema microflow to {role}")
        await admin.execute(f"grant insert on microflow.outbox to {role}")
        await outbox.append(web, OrderPlaced(order_id="o-1"))

        assert len(await store.outbox.pending(after=-1, limit=10)) == 1
    finally:
        await web.close()
        await admin.execute(f"drop owned by {role}")
        await admin.execute(f"drop role {role}")
        await admin.close()
        await store.close()


@asynchronous
async def test_a_newer_database_that_takes_no_rows_of_older_programs_is_told(postgres_url: str) -> None:
    """An append asks for no version: a migration that older rows would harm keeps them out."""
    store, outbox = await opened(postgres_url), Outbox("web")
    connection = await asyncpg.connect(postgres_url)
    try:
        await connection.execute("insert into microflow.schema_versions values (99, '0099_only_more', 1)")
        await outbox.append(connection, OrderPlaced(order_id="o-1"))
        await connection.execute("alter table microflow.outbox add column made_by integer not null default 3")
        check = "constraint needs_newer_microflow check (made_by > 3) not valid"
        await connection.execute(f"alter table microflow.outbox add {check}")
        with pytest.raises(IdentityError, match="was migrated by a newer microflow, and takes no events from this one"):
            await outbox.append(connection, OrderPlaced(order_id="o-2"))

        assert await connection.fetchval("select count(*) from microflow.outbox") == 1
    finally:
        await connection.close()
        await store.close()


@asynchronous
async def test_a_newer_file_that_takes_no_rows_of_older_programs_is_told(tmp_path: Path) -> None:
    store, outbox = await opened(f"sqlite:///{tmp_path / 'web.db'}"), Outbox("web")
    await store.close()
    with closing(sqlite3.connect(tmp_path / "web.db")) as connection:
        refuse = "begin select raise(abort, 'needs_newer_microflow'); end"
        connection.execute(f"create trigger older before insert on microflow_outbox {refuse}")
        with pytest.raises(IdentityError, match="was migrated by a newer microflow"):
            outbox.append_sync(connection, OrderPlaced(order_id="o-1"))


# ── connections that commit by themselves ─────────────────────────────────────────────────────────────────────────


@asynchronous
async def test_on_a_connection_outside_a_transaction_an_event_is_committed_at_once(postgres_url: str) -> None:
    """asyncpg has no transaction unless one is begun, and the others can be told so."""
    outbox = Outbox("web")
    store = await opened(postgres_url)
    psycopgs = psycopg.connect(postgres_url, autocommit=True)
    engine = sqlalchemy.create_engine(
        postgres_url.replace("postgresql", "postgresql+psycopg", 1), isolation_level="AUTOCOMMIT"
    )
    asyncpgs = await asyncpg.connect(postgres_url)
    try:
        await outbox.append(asyncpgs, OrderPlaced(order_id="asyncpg"))
        outbox.append_sync(psycopgs, OrderPlaced(order_id="psycopg"))
        with engine.connect() as alchemys:
            outbox.append_sync(alchemys, OrderPlaced(order_id="SQLAlchemy"))
            alchemys.rollback()

        rows = await store.outbox.pending(after=-1, limit=10)
        assert [row.key for row in rows] == [b"asyncpg", b"psycopg", b"SQLAlchemy"]
    finally:
        await asyncpgs.close()
        psycopgs.close()
        engine.dispose()
        await store.close()


@asynchronous
async def test_a_blocking_session_inside_an_asynchronous_one_takes_an_event_too(tmp_path: Path) -> None:
    """`await session.run_sync(…)` is how SQLAlchemy's own code is shared between the two."""
    url = f"sqlite:///{tmp_path / 'shop.db'}"
    store = await opened(url)
    engine = create_async_engine(url.replace("sqlite", "sqlite+aiosqlite", 1))
    async with AsyncSession(engine) as session:
        await session.run_sync(lambda each: Outbox("web").append_sync(each, OrderPlaced(order_id="o-1")))
        await session.commit()

    assert len(await store.outbox.pending(after=-1, limit=10)) == 1
    await engine.dispose()
    await store.close()


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty database."""
    url = f"sqlite:///{tmp_path / 'shop.db'}" if request.param == "sqlite" else request.getfixturevalue("postgres_url")
    return str(url)


@asynchronous
async def test_a_handlers_connection_and_its_session_take_an_event_too(url: str) -> None:
    """Inside a handler it is one more statement of the handler's transaction."""
    store, outbox = await opened(url), Outbox("web")
    async with store.transaction() as transaction:
        await outbox.append(transaction.connection, OrderPlaced(order_id="o-1"))
        with contextlib.suppress(KeyError):
            async with transaction.connection.savepoint():
                await outbox.append(transaction.connection, OrderPlaced(order_id="undone"))
                raise KeyError
        async with transaction.session(AsyncSession) as session:
            await outbox.append(session, OrderPlaced(order_id="o-2"))

    assert [row.key for row in await store.outbox.pending(after=-1, limit=10)] == [b"o-1", b"o-2"]
    await store.close()


# ── what is no connection ─────────────────────────────────────────────────────────────────────────────────────────


class Derived(sqlite3.Connection):
    """A user's own class of connections."""


def test_a_connection_of_a_derived_class_is_one(tmp_path: Path) -> None:
    """Whose it is, its bases say."""
    with (
        contextlib.closing(sqlite3.connect(tmp_path / "web.db", factory=Derived)) as connection,
        pytest.raises(StoreError, match="has no outbox yet"),
    ):
        Outbox("web").append_sync(connection, OrderPlaced(order_id="o-1"))


def test_what_is_no_connection_is_told_what_would_be_one() -> None:
    """Misuse: one sentence, and what to type."""
    for strange in (None, object(), "postgresql://localhost/shop", sqlite3):
        with pytest.raises(MicroflowError, match="is no connection that an outbox can write on") as refused:
            Outbox("web").append_sync(strange, OrderPlaced(order_id="o-1"))
        assert "psycopg, psycopg2, sqlalchemy, django, sqlite3" in str(refused.value)
        with pytest.raises(MicroflowError, match="is no connection that an outbox can write on") as refused:
            asyncio.run(Outbox("web").append(strange, OrderPlaced(order_id="o-1")))
        assert "asyncpg, psycopg, sqlalchemy, aiosqlite" in str(refused.value)


@asynchronous
async def test_what_hands_out_connections_is_none(tmp_path: Path) -> None:
    """An engine or a pool has no transaction that the event could be part of."""
    outbox, event = Outbox("web"), OrderPlaced(order_id="o-1")
    engine = sqlalchemy.create_engine(f"sqlite:///{tmp_path / 'web.db'}")
    async_engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path / 'web.db'}")
    pool = asyncpg.create_pool("postgresql://nobody@localhost:1/none", min_size=0)

    with pytest.raises(MicroflowError, match="is no connection, it hands out connections"):
        outbox.append_sync(engine, event)
    for each in (async_engine, pool):
        with pytest.raises(MicroflowError, match="is no connection, it hands out connections"):
            await outbox.append(each, event)
    engine.dispose()
    await async_engine.dispose()


@asynchronous
async def test_a_cursor_is_no_connection(tmp_path: Path) -> None:
    outbox, event = Outbox("web"), OrderPlaced(order_id="o-1")

    with (
        closing(sqlite3.connect(tmp_path / "web.db")) as connection,
        pytest.raises(MicroflowError, match="is a cursor, not its connection"),
    ):
        outbox.append_sync(connection.cursor(), event)
    async with aiosqlite.connect(tmp_path / "web.db") as other, other.cursor() as cursor:
        with pytest.raises(MicroflowError, match="is a cursor, not its connection"):
            await outbox.append(cursor, event)


@asynchronous
async def test_each_method_sends_the_other_kind_to_the_other_one(caller: tuple[str, Opening]) -> None:
    """A blocking connection would hold up the whole loop, an asynchronous one would do nothing at all."""
    url, opening = caller
    outbox, event = Outbox("web"), OrderPlaced(order_id="o-1")
    async with opening(url) as user:
        if isinstance(user, Blocking):
            with pytest.raises(MicroflowError, match=r"blocks\.") as refused:
                await outbox.append(user.connection, event)
            assert refused.value.fix == "outbox.append_sync(connection, event)"
        else:
            with pytest.raises(MicroflowError, match=r"is asynchronous\.") as refused:
                outbox.append_sync(user.connection, event)
            assert refused.value.fix == "await outbox.append(connection, event)"
