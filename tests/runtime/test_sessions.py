"""Handlers that ask for a session of SQLAlchemy: inside the transaction, like those that ask for `Connection`."""

from __future__ import annotations

import contextlib
from datetime import timedelta
from typing import Annotated, Any

from sqlalchemy import func, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from microflow.connection import Connection
from microflow.context import Context
from microflow.errors import StoreUnavailable
from microflow.events import Message
from microflow.handlers import on
from microflow.ports import Migration
from microflow.retries import Retry
from microflow.service import CallNext
from tests.runtime.bench import EFFECTS, WRITE, Gate, bench
from tests.runtime.disturbed import DisturbedStore, Moments
from tests.runtime.events import Accepted, Placed
from tests.runtime.virtual_loop import virtual

NEVER = Retry.never()
NOT_NULL = Migration("parents", "create table parents (id text not null primary key)", "test_sessions.py")


class Base(DeclarativeBase):
    pass


class Effect(Base):
    """The table of the bench."""

    __tablename__ = "effects"

    n: Mapped[int] = mapped_column(primary_key=True)
    handler: Mapped[str]
    what: Mapped[str]


class Parent(Base):
    __tablename__ = "parents"

    id: Mapped[str | None] = mapped_column(primary_key=True, autoincrement=False)


@virtual
async def test_what_a_handlers_session_holds_is_committed_with_its_events_and_its_claim() -> None:
    """Nothing is flushed by the handler: that is done when it has returned."""

    @on("Placed")
    async def accept(order: Placed, session: AsyncSession) -> Accepted:
        session.add(Effect(handler="accept", what=order.order))
        return Accepted(order=order.order)

    async with bench() as it:
        process = await it.start(accept)
        records = await it.emit(Placed(order="a"), Placed(order="b"))
        await it.publish(*records)
        await it.settle()

        assert await it.effects() == ["a", "b"]
        assert [record.key for record in await it.published("Accepted")] == [b"a", b"b"]
        assert process.outcomes() == {"done": 2, "duplicate": 2}


@virtual
async def test_a_flush_that_fails_when_the_handler_has_returned_is_an_attempt_of_that_handler() -> None:
    """Rules 4 and 5: nothing of it is committed, and the others of the batch are."""

    @on("Placed", retry=Retry(attempts=2, first_delay=timedelta(seconds=1)))
    async def accept(order: Placed, session: AsyncSession) -> Accepted:
        session.add(Effect(handler="accept", what=order.order))
        session.add(Parent(id=order.order if order.number == 0 else None))
        return Accepted(order=order.order)

    async with bench() as it:
        process = await it.start(accept, migrations=[EFFECTS, NOT_NULL])
        await it.emit(Placed(order="a"), Placed(order="bad", number=1), Placed(order="b"))
        await it.pass_time(5)
        await it.settle()

        assert await it.effects() == ["a", "b"]
        assert process.outcomes() == {"done": 2, "retry": 1, "dead": 1}
        assert len(await it.published("Accepted")) == 2
        (letter,) = await it.dead_letters()
        assert (letter.attempts, letter.reason) == (2, "exhausted")
        assert "IntegrityError" in letter.error


@virtual
async def test_an_error_that_a_handler_swallows_fails_it_with_what_the_database_said() -> None:
    """Rule 4: as one through `Connection`."""

    @on("Placed", retry=NEVER)
    async def accept(order: Placed, session: AsyncSession) -> None:
        session.add(Effect(handler="accept", what=order.order))
        session.add(Parent(id=None))
        with contextlib.suppress(IntegrityError):
            await session.flush()

    async with bench() as it:
        process = await it.start(accept, migrations=[EFFECTS, NOT_NULL])
        await it.emit(Placed(order="a"))
        await it.settle()

        assert await it.effects() == []
        assert process.outcomes() == {"dead": 1}
        assert "NotNullViolation" in (await it.dead_letters())[0].error


@virtual
async def test_a_handler_that_commits_is_told_what_to_do_instead() -> None:
    """Its commit would end the transaction of its whole batch."""

    @on("Placed", retry=NEVER)
    async def accept(order: Placed, session: AsyncSession) -> None:
        session.add(Effect(handler="accept", what=order.order))
        if order.order == "bad":
            await session.commit()

    async with bench() as it:
        process = await it.start(accept)
        await it.emit(Placed(order="a"), Placed(order="bad"))
        await it.settle()

        assert await it.effects() == ["a"]
        assert process.outcomes() == {"done": 1, "dead": 1}
        assert "commit is not a handler's" in (await it.dead_letters())[0].error


@virtual
async def test_a_savepoint_of_a_session_undoes_its_part_only() -> None:
    """Rule 4: "without a savepoint"."""

    @on("Placed", retry=NEVER)
    async def accept(order: Placed, session: AsyncSession) -> None:
        with contextlib.suppress(IntegrityError):
            async with session.begin_nested():
                session.add(Effect(handler="accept", what="undone"))
                session.add(Parent(id=None))
        session.add(Effect(handler="accept", what=order.order))

    async with bench() as it:
        await it.start(accept, migrations=[EFFECTS, NOT_NULL])
        await it.emit(Placed(order="a"))
        await it.settle()

        assert await it.effects() == ["a"]


@virtual
async def test_two_handlers_of_a_batch_do_not_see_each_others_objects() -> None:
    """A session is one execution's own."""
    sessions: list[AsyncSession] = []

    @on("Placed")
    async def accept(order: Placed, session: AsyncSession) -> None:
        assert len(list(session.identity_map.values())) == 0
        session.add(Effect(handler="accept", what=order.order))
        await session.flush()
        sessions.append(session)

    async with bench() as it:
        process = await it.start(accept)
        await it.emit(Placed(order="a"), Placed(order="b"), Placed(order="c"))
        await it.settle()

        assert process.outcomes() == {"done": 3}
        assert len({id(session) for session in sessions}) == 3


@virtual
async def test_kept_writes_are_executed_when_the_session_is_flushed_and_connection_and_session_are_one() -> None:
    """Architecture §5.5: "each followed by its own kept writes"."""
    seen: list[Any] = []

    @on("Placed", retry=NEVER)
    async def accept(order: Placed, session: AsyncSession, connection: Connection, context: Context) -> None:
        context.write("update effects set what = what || $1", "!")
        await connection.execute(WRITE, "accept", order.order)
        seen.append(await session.scalar(select(func.count()).select_from(Effect)))
        session.add(Effect(handler="accept", what="by the session"))

    async with bench() as it:
        await it.start(accept)
        await it.emit(Placed(order="a"))
        await it.settle()

        assert await it.effects() == ["a!", "by the session!"]
        assert seen == [1]


@virtual
async def test_a_middleware_sees_a_flush_that_fails() -> None:
    """What is around a handler is around all that it does."""
    seen: list[str] = []

    async def watch(call_next: CallNext, event: Message, context: Context) -> Any:
        try:
            return await call_next(event, context)
        except IntegrityError:
            seen.append("a flush that failed")
            raise

    @on("Placed", retry=NEVER)
    async def accept(order: Placed, session: AsyncSession) -> None:
        session.add(Parent(id=None))

    async with bench() as it:
        await it.start(accept, middleware=[watch], migrations=[EFFECTS, NOT_NULL])
        await it.emit(Placed(order="a"))
        await it.settle()

        assert seen == ["a flush that failed"]


@virtual
async def test_what_a_session_wrote_is_undone_with_a_commit_that_fails_and_done_again_once() -> None:
    """Rule 2: "`Connection` handlers (rolled back)" are executed again."""
    moments = Moments()
    runs = 0

    @on("Placed")
    async def accept(order: Placed, session: AsyncSession) -> Accepted:
        nonlocal runs
        runs += 1
        session.add(Effect(handler="accept", what=order.order))
        await session.flush()
        return Accepted(order=order.order)

    async with bench() as it:
        process = await it.start(accept, store=lambda store: DisturbedStore(store, moments))
        await it.settle()
        moments.plan("commit", StoreUnavailable("the disk is full"))
        await it.emit(Placed(order="a"))
        await it.settle()

        assert (runs, await it.effects()) == (2, ["a"])
        assert process.outcomes() == {"done": 1}
        assert len(await it.published("Accepted")) == 1


@virtual
async def test_what_a_session_wrote_dies_with_its_process() -> None:
    """Nothing of a transaction is left by a process that was killed in it."""
    gate = Gate()

    @on("Placed")
    async def accept(order: Placed, session: AsyncSession) -> None:
        session.add(Effect(handler="accept", what=order.order))
        await session.flush()
        await gate.pass_through(order.order)

    async with bench() as it:
        process = await it.start(accept)
        await it.emit(Placed(order="a"))
        await it.until(lambda: gate.waiting == ["a"])
        await process.crash()
        assert await it.effects() == []
        gate.open()
        await it.start(accept)
        await it.settle()

        assert await it.effects() == ["a"]


@virtual
async def test_a_session_past_its_deadline_leaves_nothing() -> None:
    """Rule 3, for what runs inside."""
    gate = Gate()

    @on("Placed", retry=NEVER, deadline=timedelta(seconds=1))
    async def accept(order: Placed, session: AsyncSession) -> None:
        session.add(Effect(handler="accept", what=order.order))
        await session.flush()
        if order.order == "slow":
            await gate.pass_through(order.order)

    async with bench() as it:
        process = await it.start(accept)
        await it.emit(Placed(order="slow"), Placed(order="a"))
        await it.pass_time(5)
        await it.settle()

        assert await it.effects() == ["a"]
        assert process.outcomes() == {"done": 1, "dead": 1}


@virtual
async def test_a_session_that_a_lifespan_provides_under_a_name_is_another_one() -> None:
    """Architecture §2: keys are types, Protocols or `Annotated[T, "name"]`."""
    given: list[Any] = []
    reporting = AsyncSession()

    @on("Placed")
    async def accept(order: Placed, reports: Annotated[AsyncSession, "reporting"]) -> None:
        given.append(reports)

    async with bench() as it:
        await it.start(accept, dependencies={Annotated[AsyncSession, "reporting"]: reporting})
        await it.emit(Placed(order="a"))
        await it.settle()

        assert given == [reporting]
