"""The transaction's connection as a handler sees it, on SQLite."""

from __future__ import annotations

import contextlib
import functools
import re
import sqlite3
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any, NoReturn

from microflow.embedded.errors import translate
from microflow.errors import SqlError, StoreError, TransactionAborted
from microflow.stores.sqlite.row import Row
from microflow.stores.sqlite.values import declared_types, encode


class SqliteConnection:
    """`microflow.ports.Connection` on the write connection of a transaction; of no use when that has ended."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._open = True
        self._savepoints = 0
        self.failure: StoreError | None = None

    async def execute(self, sql: str, *args: object) -> int:
        with self._statement(sql):
            before = self._connection.total_changes
            cursor = self._connection.execute(sql, _bind(sql, args))
            if cursor.description is not None:
                cursor.fetchall()
            return self._affected(cursor, before)

    async def executemany(self, sql: str, rows: Sequence[Sequence[object]]) -> None:
        with self._statement(sql):
            self._connection.executemany(sql, [_bind(sql, row) for row in rows])

    async def fetch(self, sql: str, *args: object) -> Sequence[Row]:
        with self._statement(sql):
            cursor = self._query(sql, args)
            columns = _columns(cursor)
            return [Row(columns, values) for values in cursor.fetchall()]

    async def fetchrow(self, sql: str, *args: object) -> Row | None:
        with self._statement(sql):
            cursor = self._query(sql, args)
            columns, values = _columns(cursor), cursor.fetchone()
            cursor.close()
            return None if values is None else Row(columns, values)

    async def fetchval(self, sql: str, *args: object) -> Any:
        with self._statement(sql):
            cursor = self._query(sql, args)
            values = cursor.fetchone()
            cursor.close()
            return None if values is None else values[0]

    @contextlib.asynccontextmanager
    async def savepoint(self) -> AsyncIterator[None]:
        self.check_usable()
        self._savepoints += 1
        name = f"microflow_{self._savepoints}"
        self._control(f"savepoint {name}")
        try:
            yield
            if self.failure is not None:  # caught inside, where nothing could undo it
                raise _aborted(self.failure)
        except BaseException:
            self._undo(name)
            raise
        self._control(f"release {name}")

    async def commit(self) -> NoReturn:
        """Raises: the transaction belongs to the runtime."""
        self._refuse("commit")

    async def rollback(self) -> NoReturn:
        """Raises: the transaction belongs to the runtime."""
        self._refuse("rollback")

    @property
    def raw(self) -> sqlite3.Connection:
        """The sqlite3 connection itself. What it raises is not noticed, and its `commit` breaks every promise."""
        return self._connection

    def check_usable(self) -> None:
        """Raise if a statement has failed, or the transaction has ended."""
        if not self._open:
            raise StoreError("This connection's transaction has ended.")
        if self.failure is not None:
            raise _aborted(self.failure)
        if not self._connection.in_transaction:  # each statement would be committed by itself
            raise ended_behind_our_back()

    def notice(self, error: BaseException, sql: str) -> None:
        """A statement that did not come this way has failed: the transaction is as spoilt as if it had."""
        if isinstance(error, sqlite3.Error):
            failure: StoreError = translate(error)
        else:
            failure = error if isinstance(error, StoreError) else SqlError(f"{type(error).__name__}: {error}")
        failure.__cause__ = None if failure is error else error
        self._fail(failure, sql)

    def undone(self) -> None:
        """A savepoint that was not made here has undone whatever had failed."""
        self.failure = None

    def close(self) -> None:
        """The transaction is over."""
        self._open = False

    def _query(self, sql: str, args: Sequence[object]) -> sqlite3.Cursor:
        parameters = _bind(sql, args)
        with declared_types():
            return self._connection.execute(sql, parameters)

    @contextlib.contextmanager
    def _statement(self, sql: str) -> Iterator[None]:
        self.check_usable()
        try:
            if word := _transaction_word(sql):
                self._refuse(word)
            yield
        except StoreError as error:
            self._fail(error, sql)
            raise
        except sqlite3.Error as cause:
            raise self._fail(translate(cause), sql) from cause
        except sqlite3.Warning as cause:  # two statements at once, until Python 3.12
            raise self._fail(SqlError(str(cause)), sql) from cause
        except (ValueError, ArithmeticError) as cause:
            raise self._fail(SqlError(f"a value is not of its column's declared type: {cause}"), sql) from cause

    def _affected(self, cursor: sqlite3.Cursor, before: int) -> int:
        if cursor.rowcount >= 0:
            return cursor.rowcount
        # sqlite3 counts for statements that begin with insert, update, delete or replace, but not behind a `with`.
        if self._connection.total_changes == before:
            return 0
        return int(self._connection.execute("select changes()").fetchone()[0])

    def _undo(self, name: str) -> None:
        if not self._open or not self._connection.in_transaction:
            return
        try:
            self._connection.execute(f"rollback to {name}")
            self._connection.execute(f"release {name}")
        except sqlite3.Error as cause:
            self._fail(translate(cause), f"rollback to {name}")
        else:
            self.failure = None

    def _control(self, sql: str) -> None:
        try:
            self._connection.execute(sql)
        except sqlite3.Error as cause:
            raise self._fail(translate(cause), sql) from cause

    def _refuse(self, word: str) -> NoReturn:
        error = SqlError(
            f"{word.upper()} is not a handler's: its transaction is committed when it returns and undone if it raises.",
            fix="To undo a part of it: async with connection.savepoint(): …",
        )
        raise self._fail(error, word)

    def _fail(self, error: StoreError, sql: str) -> StoreError:
        """Remember the first error: until a savepoint undoes it, nothing of the transaction may be committed."""
        if error is self.failure:
            return error
        statement = f"in: {_first_line(sql)}"
        error.why = f"{error.why} ({statement})" if error.why else statement
        if not self._connection.in_transaction:
            error.why += "; SQLite undid the whole transaction"
        self.failure = self.failure or error
        return error


def ended_behind_our_back() -> StoreError:
    """The error of a transaction that somebody has ended on the driver's own connection."""
    return StoreError(
        "The transaction was ended behind microflow's back.",
        why="Something called commit or rollback on `connection.raw`; its claims and events may be lost.",
    )


def _aborted(failure: StoreError) -> TransactionAborted:
    error = TransactionAborted(
        "The transaction can only be rolled back: an earlier statement failed.",
        why=str(failure),
        fix="Put `async with connection.savepoint():` around a statement that may fail, and the `try` around that.",
    )
    error.__cause__ = failure
    return error


def _columns(cursor: sqlite3.Cursor) -> dict[str, int]:
    return {column[0]: position for position, column in enumerate(cursor.description or ())}


_SKIPPED = r"'(?:[^']|'')*'|\"(?:[^\"]|\"\")*\"|`[^`]*`|\[[^]]*\]|--[^\n]*|/\*.*?\*/"
_PLACEHOLDERS = re.compile(rf"{_SKIPPED}|[^\W\d]\w*\$[\w$]*|\$(\d+)", re.DOTALL)
_FIRST_WORD = re.compile(r"(?:\s|--[^\n]*(?:\n|$)|/\*.*?\*/)*([A-Za-z]*)", re.DOTALL)
_TRANSACTION_WORDS = frozenset({"begin", "commit", "end", "rollback", "savepoint", "release"})


@functools.lru_cache(maxsize=1024)
def _placeholders(sql: str) -> frozenset[int]:
    return frozenset(int(number) for number in _PLACEHOLDERS.findall(sql) if number)


@functools.lru_cache(maxsize=1024)
def _transaction_word(sql: str) -> str | None:
    match = _FIRST_WORD.match(sql)
    word = match.group(1).lower() if match else ""
    return word if word in _TRANSACTION_WORDS else None


def _bind(sql: str, args: Sequence[object]) -> dict[str, object]:
    named = _placeholders(sql)
    if len(named) != len(args) or (named and max(named) != len(args)):
        wanted = ", ".join(f"${number}" for number in sorted(named)) or "no placeholders"
        count = f"{len(args)} parameter{'' if len(args) == 1 else 's'}"
        raise SqlError(f"{count} for a statement with {wanted}")
    bound: dict[str, object] = {}
    for number, value in enumerate(args, 1):
        try:
            bound[str(number)] = encode(value)
        except SqlError as error:
            error.what = error.what.replace("a parameter", f"${number}", 1)
            raise
    return bound


def _first_line(sql: str) -> str:
    return next((line.strip()[:120] for line in sql.splitlines() if line.strip()), "an empty statement")
