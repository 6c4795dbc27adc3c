"""The service's own migrations, the log it belongs to, the handlers that it has."""

from __future__ import annotations

import asyncio

from microflow.conformance.scenarios import Scenarios
from microflow.conformance.stores.examples import raised
from microflow.conformance.stores.harness import Harness
from microflow.errors import DefinitionError, IdentityError
from microflow.ports import Migration, Store

own_tables: Scenarios[Harness] = Scenarios()

ORDERS = Migration("0001_orders.sql", "create table orders (id text primary key, total numeric(9, 2));", "orders.sql")
ITEMS = Migration(
    "0002_items.sql",
    """-- what was ordered; a semicolon in a comment
create table items (order_id text references orders (id), name text default ';');

insert into items (name) values ('a;b'), ('it''s');
create index items_order on items (order_id)
""",
    "migrations/0002_items.sql",
)


async def _count(store: Store, table: str) -> int:
    async with store.transaction() as transaction:
        return int(await transaction.connection.fetchval(f"select count(*) from {table}"))


async def _refused(store: Store, *migrations: Migration) -> DefinitionError:
    return await raised(DefinitionError, lambda: store.migrate(migrations))


@own_tables.add()
async def migrations_run_once_and_in_order(harness: Harness) -> None:
    """Run the service's own migrations that have not been run, in order, under one lock; return their names."""
    store = await harness.open()

    first = await store.migrate([ORDERS])
    second = await store.migrate([ORDERS, ITEMS])
    third = await store.migrate([ORDERS, ITEMS])

    assert [list(first), list(second), list(third)] == [["0001_orders.sql"], ["0002_items.sql"], []]
    assert await _count(store, "items") == 2
    assert list(await store.migrate([])) == []


@own_tables.add(requires={"several_handles"})
async def two_processes_that_start_at_once_run_each_migration_once(harness: Harness) -> None:
    """… under one lock."""
    stores = [await harness.open(), await harness.open()]

    results = await asyncio.gather(*(store.migrate([ORDERS, ITEMS]) for store in stores))

    assert sorted(name for names in results for name in names) == ["0001_orders.sql", "0002_items.sql"]
    assert await _count(stores[0], "items") == 2


@own_tables.add()
async def a_migration_whose_text_changed_is_refused(harness: Harness) -> None:
    """Raises DefinitionError, with the file, … for a migration whose text changed after it was run."""
    store = await harness.open()
    await store.migrate([ORDERS])

    error = await _refused(store, _changed(ORDERS))

    assert "orders.sql" in str(error)
    assert error.fix


def _changed(migration: Migration) -> Migration:
    return Migration(migration.name, migration.sql.replace("9, 2", "12, 2"), migration.where)


@own_tables.add()
async def a_migration_with_other_line_ends_has_not_changed(harness: Harness) -> None:
    """Whose text changed: line ends are git's, not the author's."""
    store = await harness.open()
    await store.migrate([ORDERS, ITEMS])

    windows = Migration(ITEMS.name, ITEMS.sql.replace("\n", "\r\n"), ITEMS.where)

    assert list(await store.migrate([ORDERS, windows])) == []


@own_tables.add()
async def a_file_that_the_database_refuses_leaves_nothing(harness: Harness) -> None:
    """Raises DefinitionError, with the file, for SQL the database refuses."""
    store = await harness.open()
    broken = Migration("0001.sql", "create table a (id text);\n\ncreate table b (\n  id text,,\n);\n", "shop/0001.sql")

    error = await _refused(store, ORDERS, broken, ITEMS)

    assert "shop/0001.sql:3" in str(error)
    fixed = Migration("0001.sql", "create table a (id text);", "shop/0001.sql")
    assert list(await store.migrate([ORDERS, fixed])) == ["0001.sql"], "the earlier file stays, the broken one is whole"


@own_tables.add()
async def a_migration_may_not_touch_microflows_tables(harness: Harness) -> None:
    """The service's own migrations."""
    store = await harness.open()

    error = await _refused(store, Migration("1", "select 1;\ndelete from microflow_inbox;", "shop.sql"))

    assert "shop.sql:2" in str(error)


@own_tables.add()
async def a_migration_may_not_end_its_transaction(harness: Harness) -> None:
    """A file is run whole or not at all."""
    store = await harness.open()

    for sql in ("begin; create table a (id text); commit;", "create table a (id text);\n COMMIT", "rollback;"):
        await _refused(store, Migration("1", sql, "shop.sql"))

    assert list(await store.migrate([Migration("1", "create table a (id text);", "shop.sql")])) == ["1"]


@own_tables.add(requires={"several_services"})
async def migrations_are_recorded_for_each_service(harness: Harness) -> None:
    """Every table of ours is keyed by service."""
    payments, shipping = await harness.open("payments"), await harness.open("shipping")
    await payments.migrate([Migration("tables.sql", "create table receipts (id text);", "payments.sql")])

    ran = await shipping.migrate([Migration("tables.sql", "create table parcels (id text);", "shipping.sql")])

    assert list(ran) == ["tables.sql"]


@own_tables.add()
async def a_database_remembers_its_log(harness: Harness) -> None:
    """Remember the log this database belongs to and return the database's own id."""
    store, again = await harness.open(), await harness.open()

    first = await store.bind("log-1")

    assert first
    assert await again.bind("log-1") == first
    error = await raised(IdentityError, lambda: again.bind("log-2"))
    assert "log-1" in str(error)
    assert "log-2" in str(error)
    assert await store.bind("log-1") == first


@own_tables.add(requires={"several_handles"})
async def of_two_logs_bound_at_once_one_is_refused(harness: Harness) -> None:
    """Raises IdentityError if it belongs to another one."""
    stores = [await harness.open(), await harness.open()]

    results = await asyncio.gather(
        *(store.bind(f"log-{number}") for number, store in enumerate(stores)), return_exceptions=True
    )

    assert sorted(isinstance(result, IdentityError) for result in results) == [False, True]
