"""A caller's own connection, whichever library it is of: one more statement of the transaction that it has.

Nothing here begins, commits or goes around the library: what it does not see, it cannot roll back. No library is
imported for this: whoever passes one of its connections has it, and the connection's classes say which one it is.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Awaitable, Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeAlias, TypeVar

from microflow.errors import IdentityError, MicroflowError

DatabaseName: TypeAlias = Literal["postgresql", "sqlite"]
DATABASES: tuple[DatabaseName, ...] = ("postgresql", "sqlite")
Rows: TypeAlias = Sequence[Sequence[Any]]
Args: TypeAlias = tuple[object, ...]
Steps: TypeAlias = Generator[tuple[str, Args], Rows, None]
"""Statements, each with its placeholders `$1`, `$2`, … once and in order; their rows, or errors, are sent back."""
Run = TypeVar("Run", Callable[[str, Args], Rows], Callable[[str, Args], Awaitable[Rows]])


@dataclass(frozen=True, slots=True)
class Caller(Generic[Run]):
    """A connection as far as it is needed: to which database, and what runs a statement there.

    `placeholder` is what its driver writes for a parameter: `$`, `%s` or `?`.
    """

    database: DatabaseName
    placeholder: str
    run: Run

    def written(self, sql: str) -> str:
        """A statement with this driver's placeholders."""
        return sql if self.placeholder == "$" else _PLACEHOLDER.sub(self.placeholder, sql)


_PLACEHOLDER = re.compile(r"\$\d+")

Blocking: TypeAlias = Caller[Callable[[str, Args], Rows]]
Asynchronous: TypeAlias = Caller[Callable[[str, Args], Awaitable[Rows]]]


def blocking(connection: Any) -> Blocking:
    """The connection of a library that blocks. Raises MicroflowError for anything else."""
    for library in _libraries(connection):
        if library in BLOCKING and (caller := BLOCKING[library](connection)) is not None:
            return caller
    raise _refused(connection, "append_sync", BLOCKING)


async def asynchronous(connection: Any) -> Asynchronous:
    """The connection of a library that is awaited, or a handler's own. Raises MicroflowError for anything else."""
    for library in _libraries(connection):
        if library in ASYNCHRONOUS and (caller := await ASYNCHRONOUS[library](connection)) is not None:
            return caller
    raise _refused(connection, "append", ASYNCHRONOUS)


def carry_out_blocking(steps: Steps, caller: Blocking) -> None:
    """Run statements one after another. An error is the library's own, unless the steps make another one of it."""
    try:
        sql, args = next(steps)
        while True:
            try:
                rows = caller.run(caller.written(sql), args)
            except Exception as error:
                sql, args = steps.throw(error)
            else:
                sql, args = steps.send(rows)
    except StopIteration:
        return


async def carry_out(steps: Steps, caller: Asynchronous) -> None:
    """As `carry_out_blocking`, awaiting each statement."""
    try:
        sql, args = next(steps)
        while True:
            try:
                rows = await caller.run(caller.written(sql), args)
            except Exception as error:
                sql, args = steps.throw(error)
            else:
                sql, args = steps.send(rows)
    except StopIteration:
        return


KEEPS_OUT = "needs_newer_microflow"
"""The name of a constraint, or the text of a trigger, by which a newer database refuses the rows of older programs."""


def check_not_kept_out(error: BaseException) -> None:
    """Raise IdentityError if a database has refused a row because it was migrated by a newer microflow."""
    if KEEPS_OUT in str(error):
        raise IdentityError(
            "The database was migrated by a newer microflow, and takes no events from this one.",
            why="Its outbox holds rows of another form.",
            fix="pip install --upgrade microworkflow",
        ) from error


# ── libraries that block ──────────────────────────────────────────────────────────────────────────────────────────


def _sqlite3(connection: Any) -> Blocking | None:
    if not hasattr(connection, "executescript") or not hasattr(connection, "cursor"):
        return None
    return Caller("sqlite", "?", lambda sql, args: connection.execute(sql, args).fetchall())


def _psycopg(connection: Any) -> Blocking | None:
    if not hasattr(connection, "cursor_factory") or _is_awaited(connection.execute):
        return None
    # Of the connection's own cursors nobody knows which placeholders they take.
    return Caller("postgresql", "%s", _in_cursor(lambda: sys.modules["psycopg"].Cursor(connection)))


def _psycopg2(connection: Any) -> Blocking | None:
    if not hasattr(connection, "get_dsn_parameters"):
        return None
    cursor_class = sys.modules["psycopg2"].extensions.cursor
    return Caller("postgresql", "%s", _in_cursor(lambda: connection.cursor(cursor_factory=cursor_class)))


def _django(connection: Any) -> Blocking | None:
    if not hasattr(connection, "settings_dict"):
        return None
    return Caller(_known(connection.vendor), "%s", _in_cursor(connection.cursor))


def _alchemy(connection: Any) -> Blocking | None:
    if hasattr(connection, "get_bind") and not _is_awaited(connection.connection):
        connection = connection.connection()
    if not hasattr(connection, "exec_driver_sql") or _is_awaited(connection.exec_driver_sql):
        return None

    def run(sql: str, args: Args) -> Rows:
        result = connection.exec_driver_sql(sql, args)
        return result.fetchall() if result.returns_rows else []

    return Caller(_known(connection.dialect.name), _placeholder_of(connection.dialect), run)


BLOCKING: Mapping[str, Callable[[Any], Blocking | None]] = {
    "psycopg": _psycopg,
    "psycopg2": _psycopg2,
    "sqlalchemy": _alchemy,
    "django": _django,
    "sqlite3": _sqlite3,
}


# ── libraries that are awaited ────────────────────────────────────────────────────────────────────────────────────


async def _asyncpg(connection: Any) -> Asynchronous | None:
    if not hasattr(connection, "is_in_transaction"):  # a pool, which has `execute`, too
        return None
    return Caller("postgresql", "$", _separately(connection.execute))


async def _psycopg_async(connection: Any) -> Asynchronous | None:
    if not hasattr(connection, "cursor_factory") or not _is_awaited(connection.execute):
        return None

    async def run(sql: str, args: Args) -> Rows:
        async with sys.modules["psycopg"].AsyncCursor(connection) as cursor:
            await cursor.execute(sql, args)
        return []

    return Caller("postgresql", "%s", run)


async def _aiosqlite(connection: Any) -> Asynchronous | None:
    if not hasattr(connection, "execute_fetchall"):
        return None

    async def run(sql: str, args: Args) -> Rows:
        rows: Rows = await connection.execute_fetchall(sql, args)
        return rows

    return Caller("sqlite", "?", run)


async def _alchemy_async(connection: Any) -> Asynchronous | None:
    if hasattr(connection, "get_bind") and _is_awaited(connection.connection):
        connection = await connection.connection()
    if not hasattr(connection, "exec_driver_sql") or not _is_awaited(connection.exec_driver_sql):
        return None

    async def run(sql: str, args: Args) -> Rows:
        result = await connection.exec_driver_sql(sql, args)
        return result.fetchall() if result.returns_rows else []

    return Caller(_known(connection.dialect.name), _placeholder_of(connection.dialect), run)


async def _handlers_own(connection: Any) -> Asynchronous | None:
    database = HANDLERS.get(type(connection).__module__)
    return None if database is None else Caller(database, "$", _separately(connection.execute))


HANDLERS: Mapping[str, DatabaseName] = {
    "microflow.stores.postgres.connection": "postgresql",
    "microflow.stores.sqlite.connection": "sqlite",
}

ASYNCHRONOUS: Mapping[str, Callable[[Any], Awaitable[Asynchronous | None]]] = {
    "asyncpg": _asyncpg,
    "psycopg": _psycopg_async,
    "sqlalchemy": _alchemy_async,
    "aiosqlite": _aiosqlite,
    "microflow": _handlers_own,
}


# ── what they have in common ──────────────────────────────────────────────────────────────────────────────────────


def _libraries(connection: Any) -> list[str]:
    """The packages of its classes, its own first: somebody may have derived one."""
    return list(dict.fromkeys(each.__module__.partition(".")[0] for each in type(connection).__mro__))


def _known(database: str) -> DatabaseName:
    for known in DATABASES:
        if database == known:
            return known
    raise MicroflowError(
        f"This is a connection to {database}, where there is no outbox.",
        why="microflow stores in PostgreSQL and SQLite.",
    )


def _placeholder_of(dialect: Any) -> str:
    if dialect.name == "sqlite":
        return "?"
    return "$" if dialect.paramstyle == "numeric_dollar" else "%s"


def _is_awaited(method: Any) -> bool:
    return inspect.iscoroutinefunction(inspect.unwrap(method))


def _separately(execute: Callable[..., Awaitable[Any]]) -> Callable[[str, Args], Awaitable[Rows]]:
    async def run(sql: str, args: Args) -> Rows:
        await execute(sql, *args)
        return []

    return run


def _in_cursor(open_cursor: Callable[[], Any]) -> Callable[[str, Args], Rows]:
    def run(sql: str, args: Args) -> Rows:
        with open_cursor() as cursor:
            cursor.execute(sql, args or None)
            return cursor.fetchall() if cursor.description else []

    return run


def _refused(connection: Any, method: str, taken: Mapping[str, object]) -> MicroflowError:
    libraries = set(_libraries(connection)) & (BLOCKING.keys() | ASYNCHRONOUS.keys())
    named = f"{type(connection).__module__}.{type(connection).__qualname__}"
    opens = any(hasattr(connection, name) for name in ("connect", "acquire", "getconn"))
    if libraries and opens and not any(hasattr(connection, name) for name in ("commit", "transaction")):
        return MicroflowError(
            f"{named} is no connection, it hands out connections.",
            why="An event is committed with the transaction of one.",
            fix="Pass the connection, or the session, that your transaction is on.",
        )
    if libraries and hasattr(connection, "fetchone"):
        return MicroflowError(
            f"{named} is a cursor, not its connection.", fix="Pass the connection that your transaction is on."
        )
    other = "append_sync" if method == "append" else "await append"
    if libraries and any(hasattr(connection, name) for name in ("commit", "execute", "exec_driver_sql")):
        kind = "blocks" if method == "append" else "is asynchronous"
        fix = (
            "outbox.append_sync(connection, event)" if method == "append" else "await outbox.append(connection, event)"
        )
        return MicroflowError(f"{named} {kind}.", why=f"That is for `{other}`.", fix=fix)
    return MicroflowError(
        f"{named} is no connection that an outbox can write on.",
        why=f"`{method}` takes those of {', '.join(each for each in taken if each != 'microflow')}.",
        fix="Pass the connection, or the session, that your transaction is on.",
    )
