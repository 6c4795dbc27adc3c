"""What is SQLite's own about a handler's connection; what all stores share is in the conformance suite."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import threading
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from microflow.conformance.stores.examples import NOW, a_claim, a_key
from microflow.errors import SqlError, StoreError, StoreUnavailable, TransactionAborted, UniqueViolation
from microflow.stores.sqlite import SqliteStore
from microflow.stores.sqlite.values import CONVERTERS, declared_types, encode
from tests.asynchronous import asynchronous
from tests.stores.opened import opened

TABLE = "create table paid (id integer primary key, amount numeric(9, 2), at timestamptz, done boolean, text text)"


async def create(store: SqliteStore, sql: str = TABLE) -> None:
    async with store.transaction() as transaction:
        await transaction.connection.execute(sql)


async def run(store: SqliteStore, sql: str, *args: object) -> int:
    async with store.transaction() as transaction:
        return await transaction.connection.execute(sql, *args)


# ── values ────────────────────────────────────────────────────────────────────────────────────────────────────────


@asynchronous
async def test_the_users_own_sqlite_connections_are_left_alone(tmp_path: Path) -> None:
    before = dict(sqlite3.converters)
    async with opened(tmp_path / "shop.db") as store:
        await create(store)
        await run(store, "insert into paid (amount, done) values ($1, $2)", Decimal("1.50"), True)
        async with store.transaction() as transaction:
            row = await transaction.connection.fetchrow("select amount, done from paid")
            assert row == {"amount": Decimal("1.5"), "done": True}

        own = sqlite3.connect(store.path, detect_types=sqlite3.PARSE_DECLTYPES)
        assert own.execute("select amount, done from paid").fetchall() == [(1.5, 1)]
        own.close()

    assert dict(sqlite3.converters) == before


def test_converters_that_the_user_registered_come_back() -> None:
    sqlite3.register_converter("uuid", bytes.decode)
    try:
        with declared_types():
            assert sqlite3.converters["UUID"] is CONVERTERS["UUID"]
        assert sqlite3.converters["UUID"] is bytes.decode
    finally:
        del sqlite3.converters["UUID"]


def test_stores_in_two_threads_do_not_take_each_others_converters_away(tmp_path: Path) -> None:
    found: list[object] = []
    before = dict(sqlite3.converters)

    async def read(path: Path) -> None:
        async with opened(path) as store:
            await create(store)
            await run(store, "insert into paid (amount) values ($1)", Decimal("1.50"))
            async with store.transaction() as transaction:
                connection = transaction.connection
                found.extend([await connection.fetchval("select amount from paid") for _ in range(300)])

    paths = [tmp_path / f"{number}.db" for number in range(3)]
    threads = [threading.Thread(target=asyncio.run, args=(read(path),)) for path in paths]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert found == [Decimal("1.5")] * 900
    assert sqlite3.converters == before


@given(st.decimals(allow_nan=False, allow_infinity=False))
def test_a_decimal_comes_back_equal_or_is_refused(value: Decimal) -> None:
    connection = sqlite3.connect(":memory:", detect_types=sqlite3.PARSE_DECLTYPES)
    connection.execute("create table kept (value numeric)")
    try:
        encoded = encode(value)
    except SqlError:
        assert len(value.normalize().as_tuple().digits) > 15 or abs(value.adjusted()) > 290
        return
    finally:
        connection.close()
    connection = sqlite3.connect(":memory:", detect_types=sqlite3.PARSE_DECLTYPES)
    connection.execute("create table kept (value numeric)")
    connection.execute("insert into kept values (?)", (encoded,))

    with declared_types():
        cursor = connection.execute("select value from kept")
    (found,) = cursor.fetchone()
    connection.close()

    assert found == value


@given(
    st.lists(
        st.datetimes(
            min_value=datetime(1, 1, 3),  # noqa: DTZ001 - hypothesis puts the zones on
            max_value=datetime(9999, 12, 29),  # noqa: DTZ001 - as above
            timezones=st.timezones(),
        ),
        min_size=2,
        max_size=2,
    )
)
def test_instants_of_all_zones_compare_as_texts(pair: list[datetime]) -> None:
    first, second = (encode(instant) for instant in pair)

    assert isinstance(first, str)
    assert isinstance(second, str)
    assert (first < second, first == second) == (pair[0] < pair[1], pair[0] == pair[1])


@asynchronous
async def test_an_instant_from_sqlite_itself_is_read_too(tmp_path: Path) -> None:
    async with opened(tmp_path / "shop.db") as store:
        await create(store)
        async with store.transaction() as transaction:
            connection = transaction.connection
            await connection.execute("insert into paid (at) values ('2030-01-02 03:04:05')")
            at = await connection.fetchval("select at from paid")

    assert at == datetime(2030, 1, 2, 3, 4, 5, tzinfo=UTC)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (float("nan"), "nan"),
        (Decimal("NaN"), "NaN"),
        (Decimal("Infinity"), "Infinity"),
        (Decimal("1234567890.1234567"), "15 digits"),
        (Decimal("1E+400"), "15 digits"),
        (2**63, "64 bits"),
        ("\ud800", "UTF-8"),
        ({1, 2}, "set"),
        (timedelta(1), "timedelta"),
        ({"at": NOW}, "no JSON"),
    ],
)
def test_what_would_not_come_back_is_refused_by_its_number(value: object, said: str) -> None:
    async def insert() -> None:
        async with opened(Path("shop.db"), memory=True) as store:
            await create(store)
            await run(store, "insert into paid\n(id, text) values ($1, $2)", 1, value)

    with pytest.raises(SqlError, match=r"\$2 is") as error:
        asyncio.run(insert())

    assert said in str(error.value)
    assert "in: insert into paid" in str(error.value)


@asynchronous
async def test_a_value_that_is_not_of_its_columns_type_is_told(tmp_path: Path) -> None:
    async with opened(tmp_path / "shop.db") as store:
        await create(store)
        await run(store, "insert into paid (at) values ($1)", "yesterday")

        async def read() -> None:
            async with store.transaction() as transaction:
                await transaction.connection.fetch("select at from paid")

        with pytest.raises(SqlError, match="declared type"):
            await read()


# ── rows ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@asynchronous
async def test_a_row_unpacks_into_its_values(tmp_path: Path) -> None:
    async with opened(tmp_path / "shop.db") as store:
        await create(store)
        await run(store, "insert into paid (id, text) values ($1, $2)", 7, "seven")
        async with store.transaction() as transaction:
            (row,) = await transaction.connection.fetch("select id, text from paid")

    unpacked: list[Any] = list(row)
    assert unpacked == [7, "seven"]
    assert (row[0], row[-1], row[:]) == (7, "seven", (7, "seven"))
    assert row == {"id": 7, "text": "seven"}
    assert row != {"id": 7}
    assert repr(row) == "<Row id=7 text='seven'>"
    assert {**row} == {"id": 7, "text": "seven"}


# ── statements ────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "sql",
    [
        "select '$2', \"$3\", [$4], `$5`, $1 from t -- $6",
        "select $1 /* $2\n$3 */",
        "select 'it''s $2', $1",
        "select a$2 from (select $1 as a$2)",
    ],
)
def test_only_real_placeholders_count(sql: str) -> None:
    async def select() -> None:
        async with opened(Path("shop.db"), memory=True) as store, store.transaction() as transaction:
            connection = transaction.connection
            await connection.execute('create table t ("$3", [$4], `$5`)')
            await connection.fetch(sql, 1)

    asyncio.run(select())


@asynchronous
async def test_a_transaction_that_sqlite_undid_cannot_go_on(tmp_path: Path) -> None:
    async with opened(tmp_path / "shop.db") as store:
        await create(store)
        await run(store, "insert into paid (id) values (1)")

        async def undo_and_go_on() -> None:
            async with store.transaction() as transaction:
                connection = transaction.connection
                await transaction.claim([a_claim(1)], now=NOW)
                try:
                    async with connection.savepoint():
                        await connection.execute("insert or rollback into paid (id) values (1)")
                except UniqueViolation as error:
                    assert "SQLite undid the whole transaction" in str(error)  # noqa: PT017 - the end is the subject
                await connection.execute("insert into paid (id) values (2)")

        with pytest.raises(TransactionAborted):
            await undo_and_go_on()
        assert dict(await store.inbox.seen([a_key(1)])) == {}
        assert await run(store, "update paid set text = 'x'") == 1


@asynchronous
async def test_a_commit_on_the_raw_connection_is_noticed(tmp_path: Path) -> None:
    async with opened(tmp_path / "shop.db") as store:
        await create(store)

        async def commit() -> None:
            async with store.transaction() as transaction:
                transaction.connection.raw.commit()
                assert transaction.failure is not None
                with pytest.raises(StoreError, match="behind microflow's back"):
                    await transaction.claim([a_claim(1)], now=NOW)

        with pytest.raises(StoreError, match="behind microflow's back"):
            await commit()
        assert dict(await store.inbox.seen([a_key(1)])) == {}
        await run(store, "insert into paid (id) values (1)")


@asynchronous
async def test_a_full_disk_inside_a_transaction_is_the_databases_failure(tmp_path: Path) -> None:
    async with opened(tmp_path / "shop.db") as store:
        await create(store)
        writer = store._database.writer
        writer.execute(f"pragma max_page_count = {writer.execute('pragma page_count').fetchone()[0]}")

        async def fill() -> None:
            async with store.transaction() as transaction:
                await transaction.claim([a_claim(1)], now=NOW)
                with contextlib.suppress(StoreUnavailable):
                    async with transaction.connection.savepoint():
                        await transaction.connection.execute("insert into paid (text) values ($1)", "x" * 1_000_000)
                assert isinstance(transaction.failure, StoreUnavailable), "no savepoint undoes what SQLite undid itself"

        with pytest.raises(StoreError):
            await fill()
        assert dict(await store.inbox.seen([a_key(1)])) == {}
        await run(store, "insert into paid (id) values (1)")


@asynchronous
async def test_a_constraint_that_only_the_commit_checks_fails_the_transaction(tmp_path: Path) -> None:
    async with opened(tmp_path / "shop.db") as store:
        await create(store)
        await create(store, "create table item (paid integer references paid deferrable initially deferred)")

        with pytest.raises(StoreError, match="FOREIGN KEY"):
            await run(store, "insert into item values ($1)", 1)
        await run(store, "insert into paid (id) values ($1)", 1)
        await run(store, "insert into item values ($1)", 1)


@asynchronous
async def test_a_uuid_compares_with_its_text(tmp_path: Path) -> None:
    async with opened(tmp_path / "shop.db") as store:
        await create(store, "create table key (id uuid primary key)")
        key = UUID("0190163d-8694-739b-aea5-966c26f8ad91")
        await run(store, "insert into key values ($1)", key)

        assert await run(store, "delete from key where id = $1", str(key)) == 1


@asynchronous
async def test_an_error_of_the_handlers_own_other_database_stays_what_it_is(tmp_path: Path) -> None:
    async with opened(tmp_path / "shop.db") as store:

        async def fail() -> None:
            async with store.transaction() as transaction:
                await transaction.claim([a_claim(1)], now=NOW)
                raise sqlite3.IntegrityError("UNIQUE constraint failed: elsewhere.id")

        with pytest.raises(sqlite3.IntegrityError):
            await fail()
        assert dict(await store.inbox.seen([a_key(1)])) == {}
