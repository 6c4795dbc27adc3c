"""A handler's session of SQLAlchemy: on the transaction that the handler runs in, and unable to end it.

Stores bring the driver's half. SQLAlchemy is imported here and in those halves only, and they are imported when the
first handler asks for a session: whoever annotates a parameter with `AsyncSession` has it.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import AsyncIterator, Iterator
from contextvars import ContextVar
from typing import Any, NoReturn, Protocol

from sqlalchemy import event
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.pool import NullPool

from microflow.errors import SqlError, StoreError


class SpoiltByErrors(Protocol):
    """What a session asks of the store's connection: an error in the one is an error in the other."""

    @property
    def failure(self) -> StoreError | None: ...

    def check_usable(self) -> None:
        """Raise if a statement has failed, or the transaction has ended."""
        ...

    def notice(self, error: BaseException, sql: str) -> None:
        """A statement has failed: until a savepoint undoes it, nothing of the transaction may be committed."""
        ...

    def undone(self) -> None:
        """A savepoint has undone whatever had failed."""
        ...


class Lending:
    """The store's connection while a session has it: what the session may do to it, and what not."""

    def __init__(self, connection: SpoiltByErrors) -> None:
        self._connection = connection
        self.lent = False

    @contextlib.contextmanager
    def statement(self, sql: str) -> Iterator[None]:
        """Run one statement of the session. Its errors are noticed by way of `notice`."""
        if _ROLLBACK_TO.match(sql):
            yield
            self._connection.undone()
            return
        self._connection.check_usable()
        if match := _END.match(sql):
            self._refuse(match[1])
        yield

    def notice(self, error: BaseException, sql: str) -> None:
        if self.lent and self._connection.failure is None:
            self._connection.notice(error, sql)

    def commit(self) -> None:
        """As the driver's own: refused, whichever way SQLAlchemy came here."""
        if self.lent:
            self._refuse("commit")

    def rollback(self) -> None:
        """As the driver's own: nothing is rolled back, and the handler fails.

        SQLAlchemy comes here by itself when a flush fails, so it is no place to raise.
        """
        self.notice(_not_a_handlers("rollback"), "rollback")

    def _refuse(self, word: str) -> NoReturn:
        error = _not_a_handlers(word)
        self.notice(error, word)
        raise error


class DriverConnection(Protocol):
    """A connection as SQLAlchemy's dialect takes it. It ends nothing, and its statements go through `lending`."""

    @property
    def lending(self) -> Lending: ...


class Sessions:
    """Opens sessions on the connections of one store. `url` names the dialect that runs on them; `options` are its."""

    def __init__(self, url: str, **options: Any) -> None:
        # One engine for all: what it has compiled and learnt of the server is kept. Its "pool" is whatever is lent.
        self._lent: ContextVar[DriverConnection] = ContextVar("microflow_lent_connection")
        self._engine = create_async_engine(
            url, creator=self._lent.get, poolclass=NullPool, pool_reset_on_return=None, **options
        )
        event.listen(self._engine.sync_engine, "handle_error", _notice)

    @contextlib.asynccontextmanager
    async def open(self, kind: type[AsyncSession], driver: DriverConnection) -> AsyncIterator[AsyncSession]:
        """A session of this class; when the block ends its objects are detached and it is of no use."""
        token = self._lent.set(driver)
        try:
            connection = await self._engine.connect()
        finally:
            self._lent.reset(token)
        session = kind(bind=connection)
        for name in ENDS:
            setattr(session, name, _refusing(name, driver.lending))
        driver.lending.lent = True
        try:
            yield session
        finally:
            driver.lending.lent = False
            await kind.close(session)
            await connection.close()


ENDS = ("commit", "rollback", "close", "aclose", "reset", "invalidate", "begin")
"""What a session can do that would end its transaction, or begin one."""

_ROLLBACK_TO = re.compile(r"\s*rollback\s+(?:work\s+|transaction\s+)?to\b", re.IGNORECASE)
_END = re.compile(r"\s*(begin|start\s+transaction|commit|end|rollback|abort)\b", re.IGNORECASE)


def _refusing(name: str, lending: Lending) -> Any:
    def refuse(*_: Any, **__: Any) -> NoReturn:
        error = _not_a_handlers(name)
        lending.notice(error, name)
        raise error

    return refuse


def _not_a_handlers(word: str) -> SqlError:
    return SqlError(
        f"{word} is not a handler's: its transaction is committed when it returns and undone if it raises.",
        fix="To write now: await session.flush(). To undo a part of it: async with session.begin_nested(): …",
    )


def _notice(context: ExceptionContext) -> None:
    if context.connection is not None and not context.connection.closed:
        driver: Any = context.connection.connection.dbapi_connection
        error = context.original_exception
        drivers = context.dialect.loaded_dbapi
        if isinstance(error, drivers.Error) and error.__cause__ is not None:
            error = error.__cause__  # the driver's own, which the dialect has dressed as DB-API's
        driver.lending.notice(error, context.statement or "a session's statement")
