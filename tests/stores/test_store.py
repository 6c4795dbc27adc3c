"""Opening a SQLite store: whose file it is, which version wrote it, and who else is there."""

# ruff: noqa: ASYNC220 - processes are the subject, and nobody else is in the loop

from __future__ import annotations

import asyncio
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from microflow.clocks import SystemClock
from microflow.conformance.stores.examples import a_claim, a_key, commit
from microflow.errors import DefinitionError, IdentityError, StoreUnavailable
from microflow.ports import Migration
from microflow.stores.sqlite import SqliteStore
from microflow.stores.sqlite.scripts import split
from tests.asynchronous import asynchronous
from tests.embedded.full_disk import no_file_may_grow_beyond
from tests.stores.opened import opened


@asynchronous
async def test_a_file_is_still_what_it_was_when_it_is_opened_again(tmp_path: Path) -> None:
    async with opened(tmp_path / "shop.db") as store:
        database_id = await store.bind("log-1")
        await commit(store, [a_claim(1)])

    async with opened(tmp_path / "shop.db") as store:
        assert await store.bind("log-1") == database_id
        assert list(await commit(store, [a_claim(1), a_claim(2)])) == [False, True]


@asynchronous
async def test_two_files_have_two_ids(tmp_path: Path) -> None:
    async with opened(tmp_path / "a.db") as first, opened(tmp_path / "b.db") as second:
        assert await first.bind("log-1") != await second.bind("log-1")


@asynchronous
async def test_a_file_of_a_newer_version_is_refused_with_what_to_type(tmp_path: Path) -> None:
    async with opened(tmp_path / "shop.db") as store:
        await commit(store, [a_claim(1)])
    connection = sqlite3.connect(tmp_path / "shop.db")
    connection.execute("insert into microflow_schema values (99, '0099_later')")
    connection.commit()
    connection.close()
    before = (tmp_path / "shop.db").read_bytes()

    with pytest.raises(IdentityError) as error:
        await SqliteStore.open(tmp_path / "shop.db", service="payments", clock=SystemClock())

    assert "newer microflow" in str(error.value)
    assert "99" in str(error.value.why)
    assert error.value.fix == "pip install --upgrade microworkflow"
    assert (tmp_path / "shop.db").read_bytes() == before


@asynchronous
async def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "shop.db").write_text("id,total\n" * 500)

    with pytest.raises(StoreUnavailable) as error:
        await SqliteStore.open(tmp_path / "shop.db", service="payments", clock=SystemClock())

    assert error.value.fix


@asynchronous
async def test_a_disk_that_takes_no_more_is_told_with_the_file_and_what_to_do(tmp_path: Path) -> None:
    async with opened(tmp_path / "shop.db") as store:
        await commit(store, [a_claim(1)])

    with no_file_may_grow_beyond(4096), pytest.raises(StoreUnavailable, match="Cannot open the database") as error:
        await SqliteStore.open(tmp_path / "other.db", service="payments", clock=SystemClock())

    assert "other.db" in str(error.value)
    assert error.value.fix
    async with opened(tmp_path / "other.db") as store:
        assert list(await commit(store, [a_claim(1)])) == [True]


@asynchronous
async def test_a_database_of_the_user_gets_our_tables_and_keeps_its_own(tmp_path: Path) -> None:
    users = sqlite3.connect(tmp_path / "shop.db")
    users.execute("pragma user_version = 7")
    users.execute("create table orders (id text)")
    users.execute("insert into orders values ('o1')")
    users.commit()
    users.close()

    async with opened(tmp_path / "shop.db") as store, store.transaction() as transaction:
        assert await transaction.connection.fetchval("select id from orders") == "o1"
        assert await transaction.connection.fetchval("pragma user_version") == 7
        names = [row["name"] for row in await transaction.connection.fetch("select name from sqlite_master")]

    ours = [name for name in names if not name.startswith(("orders", "sqlite_"))]
    assert ours
    assert all(name.startswith("microflow_") for name in ours)


@asynchronous
async def test_a_store_is_closed_once_however_often_it_is_closed(tmp_path: Path) -> None:
    async with opened(tmp_path / "shop.db") as store, opened(tmp_path / "shop.db", service="other") as other:
        await store.close()
        await store.close()

        assert list(await commit(other, [a_claim(1)])) == [True]


@asynchronous
async def test_a_claim_costs_few_bytes(tmp_path: Path) -> None:
    async with opened(tmp_path / "shop.db") as store:
        for first in range(0, 20_000, 1000):
            await commit(store, [a_claim(number) for number in range(first, first + 1000)])
        database = store._database
        database.writer.execute("pragma wal_checkpoint(truncate)")

        assert (tmp_path / "shop.db").stat().st_size / 20_000 < 120


# ── migrations ────────────────────────────────────────────────────────────────────────────────────────────────────


@asynchronous
async def test_a_trigger_is_one_statement(tmp_path: Path) -> None:
    script = """
    create table orders (id text, note text default 'a;b'); -- the end; or not
    create trigger noted after insert on orders begin
        update orders set note = 'one;' where id = new.id;
        update orders set note = note || 'two' where id = new.id;
    end;
    ;; /* nothing; */
    insert into orders (id) values ('o1')
    """
    async with opened(tmp_path / "shop.db") as store:
        await store.migrate([Migration("1", script, "shop.sql")])
        async with store.transaction() as transaction:
            assert await transaction.connection.fetchval("select note from orders") == "one;two"


def test_a_script_is_split_with_the_lines_of_its_statements() -> None:
    assert list(split("-- a\n\nselect 1;\n/* b;\n*/ select ';';;\nselect\n2")) == [
        (3, "select 1;"),
        (5, "select ';';"),
        (6, "select\n2"),
    ]
    assert list(split("")) == list(split(" -- nothing")) == list(split("\n;;\n")) == []


@pytest.mark.parametrize(
    "sql",
    [
        "alter table microflow_outbox add column mine text;",
        "create table Microflow_mine (id text);",
        'drop table "microflow_inbox";',
        "create trigger t after insert on microflow_outbox begin select 1; end;",
    ],
)
def test_a_migration_that_touches_our_tables_is_refused(sql: str) -> None:
    async def migrate() -> None:
        async with opened(Path("shop.db"), memory=True) as store:
            await store.migrate([Migration("1", f"-- microflow_inbox is not touched here\n{sql}", "shop.sql")])

    with pytest.raises(DefinitionError, match=r"shop\.sql:2") as error:
        asyncio.run(migrate())

    assert error.value.fix


@asynchronous
async def test_naming_our_tables_in_a_text_is_no_crime(tmp_path: Path) -> None:
    async with opened(tmp_path / "shop.db") as store:
        sql = "create table notes (text text default 'microflow_inbox'); -- like microflow_inbox"

        assert list(await store.migrate([Migration("1", sql, "shop.sql")])) == ["1"]


STARTING = """
import asyncio, sys
from pathlib import Path
from microflow.clocks import SystemClock
from microflow.ports import Migration
from microflow.stores.sqlite import SqliteStore

async def main():
    store = await SqliteStore.open(Path(sys.argv[1]), service="payments", clock=SystemClock())
    tables = Migration("1", "create table orders (id text); insert into orders values ('o1');", "shop.sql")
    ran = await store.migrate([tables])
    print(len(ran), await store.bind("log-1"))
    await store.close()

print("ready", flush=True)
sys.stdin.readline()
asyncio.run(main())
"""


@asynchronous
async def test_processes_that_start_at_once_make_one_database(tmp_path: Path) -> None:
    command = [sys.executable, "-c", STARTING, str(tmp_path / "shop.db")]
    pipe = subprocess.PIPE
    starting = [subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) for _ in range(4)]
    for process in starting:
        assert process.stdout is not None
        process.stdout.readline()
    for process in starting:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    said = [process.communicate(timeout=30)[0].split() for process in starting]

    assert sorted(ran for ran, _ in said) == ["0", "0", "0", "1"]
    assert len({database_id for _, database_id in said}) == 1
    async with opened(tmp_path / "shop.db") as store, store.transaction() as transaction:
        assert await transaction.connection.fetchval("select count(*) from orders") == 1


@asynchronous
async def test_two_processes_claim_each_event_once(tmp_path: Path) -> None:
    command = [sys.executable, "-c", CLAIMING, str(tmp_path / "shop.db")]
    claiming = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    granted = [process.communicate(timeout=60)[0].split() for process in claiming]

    assert sorted(int(number) for numbers in granted for number in numbers) == list(range(600))
    async with opened(tmp_path / "shop.db") as store:
        assert len(await store.inbox.seen([a_key(number) for number in range(600)])) == 600


CLAIMING = """
import asyncio, sys
from pathlib import Path
from microflow.clocks import SystemClock
from microflow.conformance.stores.examples import a_claim, commit
from microflow.stores.sqlite import SqliteStore

async def main():
    store = await SqliteStore.open(Path(sys.argv[1]), service="payments", clock=SystemClock())
    for first in range(0, 600, 20):
        granted = await commit(store, [a_claim(number) for number in range(first, first + 20)])
        print(*(first + place for place, is_granted in enumerate(granted) if is_granted))
    await store.close()

asyncio.run(main())
"""
