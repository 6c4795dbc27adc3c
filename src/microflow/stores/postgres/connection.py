"""The transaction's connection as a handler sees it: verbs, savepoints, and the first error that spoils the rest."""

from __future__ import annotations

import contextlib
import functools
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from typing import Any, NoReturn

from asyncpg.prepared_stmt import PreparedStatement

from microflow.errors import SqlError, StoreError, StoreUnavailable, TransactionAborted
from microflow.stores.postgres.errors import FROM_DRIVER, translate
from microflow.stores.postgres.session import Row, Session


class PostgresConnection:
    """`microflow.ports.Connection` on a lane's connection; of no use when the transaction has ended.

    `begin` is awaited before the first statement, unless the transaction has begun.
    """

    def __init__(self, session: Session, begin: Callable[[], Awaitable[None]]) -> None:
        self._session = session
        self._begin = begin
        self._open = True
        self._savepoints = 0
        self.begun = False
        self.failure: StoreError | None = None

    async def execute(self, sql: str, *args: object) -> int:
        with self._statement(sql):
            await self._begin()
            status = await self._session.run(sql, lambda statement: _status(statement, args))
            if status.startswith(_DEFINITIONS):
                self._session.forget_prepared()
            return _affected(status)

    async def executemany(self, sql: str, rows: Sequence[Sequence[object]]) -> None:
        with self._statement(sql):
            await self._begin()
            await self._session.run(sql, lambda statement: statement.executemany(rows))

    async def fetch(self, sql: str, *args: object) -> Sequence[Row]:
        with self._statement(sql):
            await self._begin()
            return await self._session.fetch(sql, *args)

    async def fetchrow(self, sql: str, *args: object) -> Row | None:
        with self._statement(sql):
            await self._begin()
            return await self._session.run(sql, lambda statement: statement.fetchrow(*args))

    async def fetchval(self, sql: str, *args: object) -> Any:
        row = await self.fetchrow(sql, *args)
        return None if row is None else row[0]

    @contextlib.asynccontextmanager
    async def savepoint(self) -> AsyncIterator[None]:
        self.check_usable()
        await self._begin()
        self._savepoints += 1
        name = f"microflow_{self._savepoints}"
        await self._control(f"savepoint {name}")
        try:
            yield
            if self.failure is not None:  # caught inside, where nothing could undo it
                raise _aborted(self.failure)
        except BaseException:
            await self._undo(name)
            raise
        await self._control(f"release {name}")

    async def commit(self) -> NoReturn:
        """Raises: the transaction belongs to the runtime."""
        self._refuse("commit")

    async def rollback(self) -> NoReturn:
        """Raises: the transaction belongs to the runtime."""
        self._refuse("rollback")

    @property
    def raw(self) -> Any:
        """The driver's own connection. What it raises is not noticed, and a commit on it breaks every promise."""
        return self._session.raw

    def check_usable(self) -> None:
        """Raise if a statement has failed, or the transaction has ended."""
        if not self._open:
            raise StoreError("This connection's transaction has ended.")
        if self.failure is not None:
            raise _aborted(self.failure)
        if self.begun and not self._session.in_transaction:  # each statement would be committed by itself
            raise self.ended()

    def ended(self) -> StoreError:
        """The error of a transaction that is not open any more, and was not ended by us."""
        if self._session.closed:
            return StoreUnavailable("The connection to the database was lost.")
        return StoreError(
            "The transaction was ended behind microflow's back.",
            why="Something called commit or rollback on `connection.raw`; its claims and events may be lost.",
        )

    def notice(self, error: BaseException, sql: str) -> None:
        """A statement that did not come this way has failed: the transaction is as spoilt as if it had."""
        if isinstance(error, FROM_DRIVER):
            failure = translate(error)
        else:
            failure = error if isinstance(error, StoreError) else SqlError(f"{type(error).__name__}: {error}")
        failure.__cause__ = None if failure is error else error
        self.fail(failure, sql)

    def undone(self) -> None:
        """A savepoint that was not made here has undone whatever had failed."""
        if not isinstance(self.failure, StoreUnavailable):
            self.failure = None

    def close(self) -> None:
        """The transaction is over."""
        self._open = False

    def fail(self, error: StoreError, sql: str) -> StoreError:
        """Remember the first error: until a savepoint undoes it, nothing of the transaction may be committed."""
        if error is self.failure:
            return error
        statement = f"in: {_first_line(sql)}"
        error.why = f"{error.why} ({statement})" if error.why else statement
        self.failure = self.failure or error
        return error

    @contextlib.contextmanager
    def _statement(self, sql: str) -> Iterator[None]:
        self.check_usable()
        try:
            if word := _transaction_word(sql):
                self._refuse(word)
            yield
        except StoreError as error:
            self.fail(error, sql)
            raise
        except (*FROM_DRIVER, ValueError, TypeError, ArithmeticError) as cause:
            raise self.fail(translate(cause), sql) from cause

    async def _undo(self, name: str) -> None:
        if not self._open or self._session.closed or not self._session.in_transaction:
            return
        try:
            await self._session.script(f"rollback to {name}; release {name}")
        except FROM_DRIVER as cause:
            self.fail(translate(cause), f"rollback to {name}")
        else:
            if not isinstance(self.failure, StoreUnavailable):
                self.failure = None

    async def _control(self, sql: str) -> None:
        try:
            await self._session.script(sql)
        except FROM_DRIVER as cause:
            raise self.fail(translate(cause), sql) from cause

    def _refuse(self, word: str) -> NoReturn:
        error = SqlError(
            f"{word.upper()} is not a handler's: its transaction is committed when it returns and undone if it raises.",
            fix="To undo a part of it: async with connection.savepoint(): …",
        )
        raise self.fail(error, word)


def _aborted(failure: StoreError) -> TransactionAborted:
    error = TransactionAborted(
        "The transaction can only be rolled back: an earlier statement failed.",
        why=str(failure),
        fix="Put `async with connection.savepoint():` around a statement that may fail, and the `try` around that.",
    )
    error.__cause__ = failure
    return error


async def _status(statement: PreparedStatement[Any], args: Sequence[object]) -> str:
    await statement.fetch(*args)
    return str(statement.get_statusmsg())


_DEFINITIONS = ("CREATE", "ALTER", "DROP")
_COUNTED = frozenset({"INSERT", "UPDATE", "DELETE", "MERGE", "COPY"})


def _affected(status: str) -> int:
    """How many rows, by what the server says at a statement's end: `INSERT 0 2`, `UPDATE 3`, `SELECT 4`."""
    words = status.split()
    return int(words[-1]) if words[0] in _COUNTED else 0


_FIRST_WORDS = re.compile(r"(?:\s|--[^\n]*(?:\n|$)|/\*.*?\*/)*([A-Za-z]*)\s*([A-Za-z]*)", re.DOTALL)
_TRANSACTION_WORDS = frozenset({"begin", "start", "commit", "end", "rollback", "abort", "savepoint", "release"})


@functools.lru_cache(maxsize=1024)
def _transaction_word(sql: str) -> str | None:
    match = _FIRST_WORDS.match(sql)
    first, second = (match.group(1).lower(), match.group(2).lower()) if match else ("", "")
    if first in _TRANSACTION_WORDS or (first == "prepare" and second == "transaction"):
        return first
    return None


def _first_line(sql: str) -> str:
    return next((line.strip()[:120] for line in sql.splitlines() if line.strip()), "an empty statement")
