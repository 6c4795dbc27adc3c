"""The handler's connection: asyncpg's verbs, savepoints, and the same errors on every store."""

from __future__ import annotations

from microflow.conformance.scenarios import Scenarios
from microflow.conformance.stores.examples import NOW, a_claim, a_key, an_outbox_row, raised
from microflow.conformance.stores.harness import Harness
from microflow.errors import (
    CheckViolation,
    ForeignKeyViolation,
    IntegrityViolation,
    NotNullViolation,
    SqlError,
    StoreError,
    TransactionAborted,
    UniqueViolation,
)
from microflow.ports import Changes, Connection, Store

connections: Scenarios[Harness] = Scenarios()

TABLES = (
    "create table orders (id text primary key, total bigint not null check (total >= 0))",
    "create table items (order_id text not null references orders (id), name text)",
)


async def _shop(harness: Harness) -> Store:
    store = await harness.open()
    async with store.transaction() as transaction:
        for statement in TABLES:
            await transaction.connection.execute(statement)
        await transaction.connection.execute("insert into orders values ($1, $2)", "o1", 10)
    return store


async def _orders(store: Store) -> list[str]:
    async with store.transaction() as transaction:
        return [row["id"] for row in await transaction.connection.fetch("select id from orders order by id")]


async def _fails_with(store: Store, kind: type[StoreError], sql: str, *args: object) -> StoreError:
    """Run one statement that fails, let the transaction fail with it, return the error."""

    async def run() -> None:
        async with store.transaction() as transaction:
            await transaction.connection.execute(sql, *args)

    return await raised(kind, run)


@connections.add()
async def execute_returns_how_many_rows_it_affected(harness: Harness) -> None:
    """Run one statement; return how many rows it affected."""
    store = await _shop(harness)

    async with store.transaction() as transaction:
        connection = transaction.connection
        assert await connection.execute("insert into orders values ($1, $2), ($3, $4)", "o2", 1, "o3", 2) == 2
        assert await connection.execute("update orders set total = total + $1", 1) == 3
        assert await connection.execute("update orders set total = $1 where id = $2", 1, "none") == 0
        statement = (
            "with gone as (select id from orders where id = $1) delete from orders where id in (select id from gone)"
        )
        assert await connection.execute(statement, "o3") == 1
        assert await connection.execute("delete from orders where id = $1 returning id", "o2") == 1
        assert await connection.execute("insert into orders values ($1, $2) on conflict do nothing", "o1", 1) == 0


@connections.add()
async def fetching_gives_rows_by_name_and_position(harness: Harness) -> None:
    """All rows, each a mapping from column name to value that can be indexed by position as well."""
    store = await _shop(harness)

    async with store.transaction() as transaction:
        connection = transaction.connection
        rows = await connection.fetch("select id, total as sum_of_it from orders where id = $1", "o1")
        row = await connection.fetchrow("select id, total from orders")
        inserted = await connection.fetchrow("insert into orders values ($1, $2) returning id, total", "o2", 3)

    assert len(rows) == 1
    assert (rows[0]["id"], rows[0]["sum_of_it"]) == ("o1", 10)
    assert row is not None
    assert (row[0], row[1]) == ("o1", 10)  # type: ignore[index]  # by position too, which Mapping does not say
    assert dict(row) == {"id": "o1", "total": 10}
    assert ("id" in row, "o1" in row, len(row)) == (True, False, 2)
    assert (row.get("total"), row.get("missing"), row.get("missing", 1)) == (10, None, 1)
    assert (list(row.keys()), list(row.values()), list(row.items())) == (
        ["id", "total"],
        ["o1", 10],
        [("id", "o1"), ("total", 10)],
    )
    assert inserted is not None
    assert dict(inserted) == {"id": "o2", "total": 3}
    try:
        row["missing"]
    except KeyError:
        return
    raise AssertionError("a column that is not there has a value")


@connections.add()
async def fetching_nothing_gives_none_or_no_rows(harness: Harness) -> None:
    """The first column of the first row, or None."""
    store = await _shop(harness)

    async with store.transaction() as transaction:
        connection = transaction.connection
        assert list(await connection.fetch("select id from orders where id = $1", "none")) == []
        assert await connection.fetchrow("select id from orders where id = $1", "none") is None
        assert await connection.fetchval("select id from orders where id = $1", "none") is None
        assert await connection.fetchval("select total, id from orders") == 10


@connections.add()
async def executemany_runs_a_statement_for_each_row(harness: Harness) -> None:
    """asyncpg's verbs."""
    store = await _shop(harness)

    async with store.transaction() as transaction:
        await transaction.connection.executemany("insert into orders values ($1, $2)", [("o2", 1), ("o3", 2)])
        await transaction.connection.executemany("insert into orders values ($1, $2)", [])

    assert await _orders(store) == ["o1", "o2", "o3"]


@connections.add()
async def a_placeholder_may_be_used_twice_and_out_of_order(harness: Harness) -> None:
    """`$1` placeholders on every store."""
    store = await _shop(harness)

    async with store.transaction() as transaction:
        sql = "insert into orders (total, id) values ($2, $1) on conflict (id) do update set total = $2"
        await transaction.connection.execute(sql, "o1", 77)
        found = await transaction.connection.fetchval("select id from orders where total = $1 and '$9' <> id -- $8", 77)

    assert found == "o1"


@connections.add()
async def constraints_have_errors_of_their_own(harness: Harness) -> None:
    """Errors are those of `microflow.errors`."""
    store = await _shop(harness)

    await _fails_with(store, UniqueViolation, "insert into orders values ($1, $2)", "o1", 1)
    await _fails_with(store, NotNullViolation, "insert into orders (id) values ($1)", "o2")
    await _fails_with(store, CheckViolation, "insert into orders values ($1, $2)", "o2", -1)
    await _fails_with(store, ForeignKeyViolation, "insert into items values ($1, $2)", "none", "book")
    error = await _fails_with(store, IntegrityViolation, "insert into orders values ($1, $2)", "o1", 1)

    assert not error.transient
    assert await _orders(store) == ["o1"]


@connections.add()
async def a_wrong_statement_is_an_sql_error_that_shows_it(harness: Harness) -> None:
    """A statement is wrong: its syntax, a table or column that is missing, a parameter of the wrong type."""
    store = await _shop(harness)

    for sql in ("selekt 1", "select missing from orders", "insert into nowhere values (1)", "select 1; select 2"):
        error = await _fails_with(store, SqlError, sql)
        assert not isinstance(error, TransactionAborted)
        assert sql in str(error)


@connections.add()
async def parameters_must_match_the_placeholders(harness: Harness) -> None:
    """`$1` placeholders: one for each parameter, a parameter for each."""
    store = await _shop(harness)

    await _fails_with(store, SqlError, "insert into orders values ($1, $2)", "o2")
    await _fails_with(store, SqlError, "insert into orders values ($1, $2)", "o2", 1, 2)
    await _fails_with(store, SqlError, "select id from orders", "o2")
    await _fails_with(store, SqlError, "select id from orders where id = $2", "o2", "o3")

    assert await _orders(store) == ["o1"]


@connections.add()
async def a_parameter_of_a_foreign_class_is_refused(harness: Harness) -> None:
    """A parameter of the wrong type."""
    store = await _shop(harness)

    await _fails_with(store, SqlError, "insert into orders values ($1, $2)", object(), 1)
    await _fails_with(store, SqlError, "insert into orders values ($1, $2)", "o2", 2**63)


@connections.add()
async def an_error_that_was_swallowed_fails_the_transaction(harness: Harness) -> None:
    """An error that is not caught around a `savepoint()` fails the handler, even if the handler goes on."""
    store = await _shop(harness)
    seen: list[StoreError | None] = []

    async def swallow() -> None:
        async with store.transaction() as transaction:
            await transaction.claim([a_claim(1)], now=NOW)
            connection = transaction.connection
            assert transaction.failure is None
            await connection.execute("insert into orders values ($1, $2)", "o2", 1)
            first = await raised(UniqueViolation, lambda: connection.execute("insert into orders values ('o1', 1)"))
            seen.append(transaction.failure)
            assert transaction.failure is first
            await raised(TransactionAborted, lambda: connection.fetch("select 1"))
            assert transaction.failure is first
            await transaction.write(Changes(outbox=[an_outbox_row(1)]))

    await raised(StoreError, swallow)

    assert isinstance(seen[0], UniqueViolation)
    assert await _orders(store) == ["o1"]
    assert dict(await store.inbox.seen([a_key(1)])) == {}


@connections.add()
async def a_transaction_with_a_failure_is_not_committed(harness: Harness) -> None:
    """Whoever caught it, nothing can be committed."""
    store = await _shop(harness)

    async def swallow() -> None:
        async with store.transaction() as transaction:
            connection = transaction.connection
            await connection.execute("insert into orders values ($1, $2)", "o2", 1)
            await raised(SqlError, lambda: connection.execute("selekt"))

    await raised(StoreError, swallow)

    assert await _orders(store) == ["o1"]


@connections.add()
async def after_an_error_every_verb_is_refused(harness: Harness) -> None:
    """A statement after one that failed: the transaction can only be rolled back."""
    store = await _shop(harness)

    async def use_all(connection: Connection) -> None:
        async def enter() -> None:
            async with connection.savepoint():
                pass

        await raised(SqlError, lambda: connection.execute("selekt"))
        await raised(TransactionAborted, lambda: connection.execute("select 1"))
        await raised(TransactionAborted, lambda: connection.executemany("delete from orders where id = $1", [("o1",)]))
        await raised(TransactionAborted, lambda: connection.fetchrow("select 1"))
        await raised(TransactionAborted, lambda: connection.fetchval("select 1"))
        await raised(TransactionAborted, enter)

    async def run() -> None:
        async with store.transaction() as transaction:
            await use_all(transaction.connection)

    await raised(StoreError, run)


@connections.add()
async def a_savepoint_undoes_what_raised_inside(harness: Harness) -> None:
    """What is done inside is undone if it raises; afterwards the transaction is usable."""
    store = await _shop(harness)

    async with store.transaction() as transaction:
        connection = transaction.connection
        await connection.execute("insert into orders values ($1, $2)", "o2", 1)
        try:
            async with connection.savepoint():
                await connection.execute("insert into orders values ($1, $2)", "o3", 1)
                await connection.execute("insert into orders values ($1, $2)", "o1", 1)
        except UniqueViolation:
            pass
        assert transaction.failure is None
        try:
            async with connection.savepoint():
                await connection.execute("insert into orders values ($1, $2)", "o4", 1)
                raise RuntimeError
        except RuntimeError:
            pass
        async with connection.savepoint():
            await connection.execute("insert into orders values ($1, $2)", "o5", 1)

    assert await _orders(store) == ["o1", "o2", "o5"]


@connections.add()
async def savepoints_nest(harness: Harness) -> None:
    """What is done inside is undone if it raises: of the inner one only, or of both."""
    store = await _shop(harness)

    async with store.transaction() as transaction:
        connection = transaction.connection
        async with connection.savepoint():
            await connection.execute("insert into orders values ($1, $2)", "kept", 1)
            try:
                async with connection.savepoint():
                    await connection.execute("insert into orders values ($1, $2)", "inner", 1)
                    await connection.execute("selekt")
            except SqlError:
                pass
        try:
            async with connection.savepoint():
                async with connection.savepoint():
                    await connection.execute("insert into orders values ($1, $2)", "released", 1)
                raise RuntimeError
        except RuntimeError:
            pass

    assert await _orders(store) == ["kept", "o1"]


@connections.add()
async def an_error_swallowed_inside_a_savepoint_is_raised_at_its_end(harness: Harness) -> None:
    """An error that is not caught *around* a `savepoint()` is no more undone by one that stands outside of it."""
    store = await _shop(harness)

    async with store.transaction() as transaction:
        connection = transaction.connection
        try:
            async with connection.savepoint():
                await connection.execute("insert into orders values ($1, $2)", "o2", 1)
                await raised(SqlError, lambda: connection.execute("selekt"))
        except TransactionAborted:
            pass
        else:
            raise AssertionError("the savepoint said nothing")
        await connection.execute("insert into orders values ($1, $2)", "o3", 1)

    assert await _orders(store) == ["o1", "o3"]


@connections.add()
async def commit_and_rollback_are_refused(harness: Harness) -> None:
    """`commit` and `rollback` belong to the runtime and raise."""
    store = await _shop(harness)

    for word in ("commit", "rollback", "begin", "BEGIN", "  -- a comment\n /* another */ Commit", "savepoint x", "end"):
        await _fails_with(store, SqlError, word)
    for name in ("commit", "rollback"):

        async def run(name: str = name) -> None:
            async with store.transaction() as transaction:
                await transaction.connection.execute("insert into orders values ($1, $2)", "o2", 1)
                await getattr(transaction.connection, name)()

        await raised(StoreError, run)

    assert await _orders(store) == ["o1"]


@connections.add()
async def kept_writes_and_handlers_share_one_transaction(harness: Harness) -> None:
    """For handlers and their kept writes: they see each other's rows."""
    store = await _shop(harness)

    async with store.transaction() as transaction:
        await transaction.claim([a_claim(1)], now=NOW)
        await transaction.connection.execute("insert into orders values ($1, $2)", "o2", 1)
        assert await transaction.connection.fetchval("select count(*) from orders") == 2
        await transaction.write(Changes(outbox=[an_outbox_row(1)]))

    assert await _orders(store) == ["o1", "o2"]


@connections.add()
async def the_drivers_own_connection_is_there(harness: Harness) -> None:
    """The driver's own connection."""
    store = await harness.open()

    async with store.transaction() as transaction:
        assert transaction.connection.raw is not None
