"""A handler's session of SQLAlchemy: on the transaction, unable to end it, its errors those of the transaction."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import date, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

from sqlalchemy import JSON, DateTime, Numeric, select, text, update
from sqlalchemy.exc import DBAPIError, IntegrityError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.inspection import inspect
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
from sqlalchemy.orm.exc import StaleDataError

from microflow.conformance.scenarios import Scenarios
from microflow.conformance.stores.examples import NOW, a_claim, a_key, an_outbox_row, raised
from microflow.conformance.stores.harness import Harness
from microflow.errors import SqlError, StoreError, TransactionAborted, UniqueViolation
from microflow.ports import Changes, Store, Transaction

sessions: Scenarios[Harness] = Scenarios()


class Base(DeclarativeBase):
    pass


class Order(Base):
    __tablename__ = "orders"

    id: Mapped[str] = mapped_column(primary_key=True)
    total: Mapped[int]


class Everything(Base):
    __tablename__ = "everything"

    id: Mapped[UUID] = mapped_column(primary_key=True)
    amount: Mapped[Decimal] = mapped_column(Numeric(12, 2))
    ratio: Mapped[float]
    flag: Mapped[bool]
    raw: Mapped[bytes]
    at: Mapped[datetime] = mapped_column(DateTime)
    day: Mapped[date]
    data: Mapped[dict[str, Any]] = mapped_column(JSON)
    note: Mapped[str | None]


class Sessions(AsyncSession):
    """A session of the user's own."""


async def _shop(harness: Harness) -> Store:
    store = await harness.open()
    async with store.transaction() as transaction:
        async with transaction.session(AsyncSession) as session:
            await (await session.connection()).run_sync(Base.metadata.create_all)
        await transaction.connection.execute("insert into orders values ($1, $2)", "o1", 10)
    return store


async def _orders(store: Store) -> list[str]:
    async with store.transaction() as transaction:
        return [row["id"] for row in await transaction.connection.fetch("select id from orders order by id")]


async def _commits(store: Store, work: Callable[[AsyncSession, Transaction], Awaitable[None]]) -> None:
    """Do something with a session in a transaction that has a claim and an event, too."""
    async with store.transaction() as transaction:
        await transaction.claim([a_claim(1)], now=NOW)
        async with transaction.session(AsyncSession) as session:
            await work(session, transaction)
            if transaction.failure is None:
                await session.flush()
        await transaction.write(Changes(outbox=[an_outbox_row(1)]))


async def _fails(store: Store, work: Callable[[AsyncSession, Transaction], Awaitable[None]]) -> None:
    """As `_commits`, for something that must keep the transaction from being committed."""
    await raised(StoreError, lambda: _commits(store, work))

    assert await _orders(store) == ["o1"]
    assert dict(await store.inbox.seen([a_key(1)])) == {}
    assert list(await store.outbox.pending(after=-1, limit=10)) == []


@sessions.add()
async def what_a_session_writes_is_committed_with_the_transaction(harness: Harness) -> None:
    """A session of SQLAlchemy on `connection`."""
    store = await _shop(harness)

    async def work(session: AsyncSession, _: Transaction) -> None:
        session.add(Order(id="o2", total=2))

    await _commits(store, work)

    assert await _orders(store) == ["o1", "o2"]
    assert list(await store.inbox.seen([a_key(1)])) == [a_key(1)]
    assert len(await store.outbox.pending(after=-1, limit=10)) == 1


@sessions.add()
async def what_a_session_writes_is_rolled_back_with_the_transaction(harness: Harness) -> None:
    """All of it is committed, or none."""
    store = await _shop(harness)

    async def work(session: AsyncSession, _: Transaction) -> None:
        session.add(Order(id="o2", total=2))
        await session.flush()
        raise StoreError("the handler's own")

    await _fails(store, work)


@sessions.add()
async def a_session_and_the_connection_see_what_the_other_wrote(harness: Harness) -> None:
    """On `connection`."""
    store = await _shop(harness)

    async def work(session: AsyncSession, transaction: Transaction) -> None:
        session.add(Order(id="o2", total=2))
        await session.flush()
        assert await transaction.connection.fetchval("select total from orders where id = $1", "o2") == 2
        await transaction.connection.execute("insert into orders values ($1, $2)", "o3", 3)
        assert (await session.get_one(Order, "o3")).total == 3

    await _commits(store, work)

    assert await _orders(store) == ["o1", "o2", "o3"]


@sessions.add()
async def a_session_is_of_the_class_that_was_asked_for(harness: Harness) -> None:
    """Of this class."""
    store = await _shop(harness)

    async with store.transaction() as transaction, transaction.session(Sessions) as session:
        assert type(session) is Sessions


@sessions.add()
async def values_come_back_through_a_session_as_they_went_in(harness: Harness) -> None:
    """A session of SQLAlchemy: with its own types, whatever the store makes of declared ones for `Connection`."""
    store = await _shop(harness)
    values: dict[str, Any] = {
        "id": UUID(int=7),
        "amount": Decimal("12.50"),
        "ratio": 0.5,
        "flag": True,
        "raw": b"\x00\xff",
        "at": datetime(2030, 1, 2, 3, 4, 5, 678901),  # noqa: DTZ001 - a column without a zone is what is tried
        "day": date(2030, 1, 2),
        "data": {"a": [1, None, "ü"]},
        "note": None,
    }
    async with store.transaction() as transaction, transaction.session(AsyncSession) as session:
        session.add(Everything(**values))
        await session.flush()

    async with store.transaction() as transaction, transaction.session(AsyncSession) as session:
        found = (await session.scalars(select(Everything).where(Everything.data["a"][0].as_integer() == 1))).one()
        assert {name: getattr(found, name) for name in values} == values
        # What the session converts for itself leaves the connection's own values alone.
        assert await transaction.connection.fetchval("select data from everything") == {"a": [1, None, "ü"]}
        await transaction.connection.execute("update everything set data = $1", {"b": 2})
        await session.refresh(found)
        assert found.data == {"b": 2}


@sessions.add()
async def rows_can_be_streamed(harness: Harness) -> None:
    """A session of SQLAlchemy."""
    store = await _shop(harness)

    async with store.transaction() as transaction, transaction.session(AsyncSession) as session:
        session.add_all([Order(id=f"s{number:03}", total=number) for number in range(120)])
        totals = [each.total async for each in await session.stream_scalars(select(Order).order_by(Order.total))]

    assert sorted(totals) == sorted([10, *range(120)])


@sessions.add()
async def rows_affected_are_counted(harness: Harness) -> None:
    """A session of SQLAlchemy."""
    store = await _shop(harness)

    async with store.transaction() as transaction, transaction.session(AsyncSession) as session:
        result: Any = await session.execute(update(Order).values(total=1))
        assert result.rowcount == 1


@sessions.add()
async def the_connection_underneath_executes_too(harness: Harness) -> None:
    """A session of SQLAlchemy, with all that hangs on it."""
    store = await _shop(harness)

    async def work(session: AsyncSession, _: Transaction) -> None:
        connection = await session.connection()
        await connection.execute(update(Order).values(total=11))
        await connection.exec_driver_sql("insert into orders values ('o2', 2)")
        assert (await connection.execute(select(Order.total).order_by(Order.total))).scalars().all() == [2, 11]

    await _commits(store, work)

    assert await _orders(store) == ["o1", "o2"]


# ── it cannot end the transaction ─────────────────────────────────────────────────────────────────────────────────


async def _is_refused(harness: Harness, end: Callable[[AsyncSession], Awaitable[object]]) -> None:
    """An end of the transaction raises what to do instead, and the handler that swallows that fails all the same."""
    store = await _shop(harness)

    async def work(session: AsyncSession, _: Transaction) -> None:
        session.add(Order(id="o2", total=2))
        error = await raised(SqlError, lambda: end(session))
        assert error.fix is not None
        assert "session.flush()" in error.fix
        assert "session.begin_nested()" in error.fix

    await _fails(store, work)


@sessions.add()
async def commit_is_refused(harness: Harness) -> None:
    """It cannot end the transaction."""
    await _is_refused(harness, lambda session: session.commit())


@sessions.add()
async def rollback_is_refused(harness: Harness) -> None:
    """It cannot end the transaction."""
    await _is_refused(harness, lambda session: session.rollback())


@sessions.add()
async def close_is_refused(harness: Harness) -> None:
    """It cannot end the transaction."""
    await _is_refused(harness, lambda session: session.close())


@sessions.add()
async def leaving_it_as_a_block_is_refused(harness: Harness) -> None:
    """It cannot end the transaction."""

    async def leave(session: AsyncSession) -> None:
        async with session:
            pass

    await _is_refused(harness, leave)


@sessions.add()
async def beginning_a_transaction_of_its_own_is_refused(harness: Harness) -> None:
    """It cannot end the transaction, as the block of `session.begin()` would."""

    async def begin(session: AsyncSession) -> None:
        async with session.begin():
            pass

    await _is_refused(harness, begin)


@sessions.add()
async def a_commit_by_the_session_underneath_is_refused(harness: Harness) -> None:
    """It cannot end the transaction."""
    await _is_refused(harness, lambda session: session.run_sync(Session.commit))


@sessions.add()
async def a_commit_by_the_connection_underneath_is_refused(harness: Harness) -> None:
    """It cannot end the transaction."""

    async def commit(session: AsyncSession) -> None:
        await (await session.connection()).commit()

    await _is_refused(harness, commit)


@sessions.add()
async def a_commit_in_sql_is_refused(harness: Harness) -> None:
    """It cannot end the transaction."""
    await _is_refused(harness, lambda session: session.execute(text(" commit")))


@sessions.add()
async def a_rollback_in_sql_is_refused(harness: Harness) -> None:
    """It cannot end the transaction."""
    await _is_refused(harness, lambda session: session.execute(text("ROLLBACK")))


@sessions.add()
async def a_rollback_underneath_fails_the_transaction(harness: Harness) -> None:
    """It cannot end the transaction: what it has forgotten by then would be committed by somebody else."""
    store = await _shop(harness)

    async def work(session: AsyncSession, _: Transaction) -> None:
        session.add(Order(id="o2", total=2))
        await session.flush()
        await session.run_sync(Session.rollback)

    await _fails(store, work)


# ── its errors are the transaction's ──────────────────────────────────────────────────────────────────────────────


@sessions.add()
async def an_error_in_a_session_that_was_swallowed_fails_the_transaction(harness: Harness) -> None:
    """An SQL error in it counts as one on `connection` (rule 4): the same failure, whoever caught it."""
    store = await _shop(harness)
    seen: list[StoreError | None] = []

    async def work(session: AsyncSession, transaction: Transaction) -> None:
        session.add(Order(id="o1", total=2))
        await raised(IntegrityError, session.flush)
        seen.append(transaction.failure)
        await raised(TransactionAborted, lambda: transaction.connection.execute("select 1"))

    await _fails(store, work)

    assert isinstance(seen[0], UniqueViolation)


@sessions.add()
async def a_wrong_statement_of_a_session_fails_the_transaction(harness: Harness) -> None:
    """An SQL error in it counts as one on `connection`."""
    store = await _shop(harness)
    seen: list[StoreError | None] = []

    async def work(session: AsyncSession, transaction: Transaction) -> None:
        await raised(DBAPIError, lambda: session.execute(text("selekt 1")))
        seen.append(transaction.failure)
        await raised(TransactionAborted, lambda: session.execute(text("select 1")))

    await _fails(store, work)

    assert isinstance(seen[0], SqlError)


@sessions.add()
async def a_failure_on_the_connection_ends_the_session_too(harness: Harness) -> None:
    """The first error that no savepoint undid."""
    store = await _shop(harness)

    async def work(session: AsyncSession, transaction: Transaction) -> None:
        await raised(SqlError, lambda: transaction.connection.execute("selekt"))
        await raised(TransactionAborted, lambda: session.execute(text("select 1")))

    await _fails(store, work)


@sessions.add()
async def a_flush_that_fails_without_an_sql_error_fails_the_transaction(harness: Harness) -> None:
    """SQLAlchemy takes its session back to the beginning; what was written before must not be committed alone."""
    store = await _shop(harness)

    async def work(session: AsyncSession, transaction: Transaction) -> None:
        order = await session.get_one(Order, "o1")
        session.add(Order(id="o2", total=2))
        await session.flush()
        await transaction.connection.execute("delete from orders where id = $1", "o1")
        order.total = 11
        await raised(StaleDataError, session.flush)

    await _fails(store, work)


@sessions.add()
async def a_savepoint_of_a_session_undoes_what_raised_inside(harness: Harness) -> None:
    """The first error of this transaction *that no savepoint undid*."""
    store = await _shop(harness)

    async def work(session: AsyncSession, transaction: Transaction) -> None:
        session.add(Order(id="o2", total=2))
        try:
            async with session.begin_nested():
                session.add(Order(id="o3", total=3))
                await session.flush()
                session.add(Order(id="o1", total=3))
        except IntegrityError:
            pass
        assert transaction.failure is None
        async with session.begin_nested():
            session.add(Order(id="o4", total=4))
        assert (await session.get_one(Order, "o1")).total == 10

    await _commits(store, work)

    assert await _orders(store) == ["o1", "o2", "o4"]


@sessions.add()
async def a_savepoint_of_the_connection_holds_a_sessions_error_too(harness: Harness) -> None:
    """The first error of this transaction *that no savepoint undid*."""
    store = await _shop(harness)

    async def work(session: AsyncSession, transaction: Transaction) -> None:
        try:
            async with transaction.connection.savepoint():
                await session.execute(text("insert into orders values ('o2', 2)"))
                await session.execute(text("insert into orders values ('o1', 2)"))
        except IntegrityError:
            pass
        assert transaction.failure is None
        await session.execute(text("insert into orders values ('o3', 3)"))

    await _commits(store, work)

    assert await _orders(store) == ["o1", "o3"]


@sessions.add()
async def savepoints_of_a_session_nest(harness: Harness) -> None:
    """What is done inside is undone if it raises: of the inner one only, or of both."""
    store = await _shop(harness)

    async def work(session: AsyncSession, _: Transaction) -> None:
        async with session.begin_nested():
            session.add(Order(id="kept", total=1))
            try:
                async with session.begin_nested():
                    session.add(Order(id="inner", total=1))
                    await session.flush()
                    raise RuntimeError
            except RuntimeError:
                pass
        try:
            async with session.begin_nested():
                async with session.begin_nested():
                    session.add(Order(id="released", total=1))
                raise RuntimeError
        except RuntimeError:
            pass

    await _commits(store, work)

    assert await _orders(store) == ["kept", "o1"]


@sessions.add()
async def an_error_swallowed_inside_a_sessions_savepoint_fails_the_transaction(harness: Harness) -> None:
    """Only one that leaves the savepoint is undone by it; SQLAlchemy cannot release one behind an error."""
    store = await _shop(harness)

    async def work(session: AsyncSession, _: Transaction) -> None:
        async with session.begin_nested():
            session.add(Order(id="o2", total=2))
            await session.flush()
            await raised(DBAPIError, lambda: session.execute(text("selekt")))

    await _fails(store, work)


# ── when it is over ───────────────────────────────────────────────────────────────────────────────────────────────


@sessions.add()
async def two_sessions_of_a_transaction_share_nothing_but_the_database(harness: Harness) -> None:
    """Its objects are detached when the block ends."""
    store = await _shop(harness)

    async with store.transaction() as transaction:
        async with transaction.session(AsyncSession) as first:
            loaded = await first.get_one(Order, "o1")
            loaded.total = 99
            never_flushed = Order(id="o2", total=2)
            first.add(never_flushed)
        async with transaction.session(AsyncSession) as second:
            mine = await second.get_one(Order, "o1")
            assert mine is not loaded
            assert mine.total == 10
            assert await second.get(Order, "o2") is None
            await second.flush()

    assert inspect(loaded).detached
    assert inspect(never_flushed).transient
    assert await _orders(store) == ["o1"]


@sessions.add()
async def a_session_is_of_no_use_when_its_transaction_has_ended(harness: Harness) -> None:
    """Its objects are detached when the block ends."""
    store = await _shop(harness)

    async with store.transaction() as transaction, transaction.session(AsyncSession) as session:
        await session.get_one(Order, "o1")

    async with store.transaction() as transaction:
        await raised(SQLAlchemyError, lambda: session.get_one(Order, "o1"))

    assert await _orders(store) == ["o1"]


@sessions.add()
async def transactions_at_once_have_sessions_of_their_own(harness: Harness) -> None:
    """A session of SQLAlchemy on `connection`, that of this transaction."""
    store = await _shop(harness)

    async def add(name: str) -> None:
        async with store.transaction() as transaction, transaction.session(AsyncSession) as session:
            session.add(Order(id=name, total=1))
            await session.flush()
            await asyncio.sleep(0)
            if name.endswith("bad"):
                raise StoreError("not this one")

    outcomes = await asyncio.gather(*(add(f"x{n}{'bad' * (n % 2)}") for n in range(6)), return_exceptions=True)

    assert [isinstance(each, StoreError) for each in outcomes] == [False, True] * 3
    assert await _orders(store) == ["o1", "x0", "x2", "x4"]
