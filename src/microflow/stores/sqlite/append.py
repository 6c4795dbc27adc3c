"""Events from outside a handler: a row in the outbox, inside the caller's own transaction.

Nothing here begins, commits or looks around the caller's library: the row is a statement like the caller's other
ones, so it is committed with them or not at all. A relay learns of it by looking at the file.
"""

from __future__ import annotations

import inspect
import shlex
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from microflow.embedded.errors import translate
from microflow.errors import MicroflowError, SqlError
from microflow.ports import OutboxRow
from microflow.stores.sqlite.connection import SqliteConnection
from microflow.stores.sqlite.outbox import SQL, values

DATABASES = "pragma database_list"


NO_CHECKPOINTS = "pragma wal_autocheckpoint = 0"
"""The caller's connection makes no checkpoints beside ours: before SQLite 3.51.3 two at once could corrupt the file."""


def append_sync(connection: Any, service: str, row: OutboxRow) -> None:
    """Write an event to the outbox on the caller's connection, as one more statement of its transaction.

    Takes a connection of sqlite3, or a connection or session of SQLAlchemy. One of sqlite3 with an `isolation_level`
    begins a transaction for it as for any insert, and the caller commits it; one in autocommit mode outside a
    transaction commits it at once. Raises StoreError, and MicroflowError for what is no blocking connection.
    """
    if _is_session(connection) and not inspect.iscoroutinefunction(connection.connection):
        connection = connection.connection()
    execute = _execute_of(connection)
    if inspect.iscoroutinefunction(execute) or not (
        isinstance(connection, sqlite3.Connection) or _is_alchemys(execute)
    ):
        raise _unknown(connection)
    try:
        with _explained():
            execute(NO_CHECKPOINTS)
            execute(SQL["append"], values(service, row))
    except Exception as error:
        if not _lacks_outbox(error):
            raise
        raise _no_outbox(execute(DATABASES).fetchall()) from None


async def append_async(connection: Any, service: str, row: OutboxRow) -> None:
    """Write an event to the outbox on the caller's asynchronous connection, or on a handler's `Connection`.

    Takes a connection whose `execute` is awaited, as aiosqlite's, an asynchronous connection or session of
    SQLAlchemy, and whatever `append_sync` takes. As there: one more statement of whatever transaction the caller's
    library has. Raises StoreError, and MicroflowError for what is no connection.
    """
    if isinstance(connection, SqliteConnection):
        connection.append(service, row)
        return
    if _is_session(connection):
        connection = await _awaited(connection.connection())
    execute = _execute_of(connection)
    try:
        with _explained():
            await _awaited(execute(NO_CHECKPOINTS))
            await _awaited(execute(SQL["append"], values(service, row)))
    except Exception as error:
        if not _lacks_outbox(error):
            raise
        found = await _awaited(execute(DATABASES))
        raise _no_outbox(await _awaited(found.fetchall())) from None


def _is_session(connection: Any) -> bool:
    # Of SQLAlchemy, which is not imported for this: whoever passes one has it.
    return hasattr(connection, "get_bind") and callable(getattr(connection, "connection", None))


def _execute_of(connection: Any) -> Callable[..., Any]:
    """What takes a statement as the driver does, in the caller's transaction."""
    alchemys = getattr(connection, "exec_driver_sql", None)
    if alchemys is not None and connection.dialect.name != "sqlite":
        raise MicroflowError(f"This is a connection to {connection.dialect.name}; this version stores in SQLite only.")
    execute: Callable[..., Any] | None = alchemys or getattr(connection, "execute", None)
    if execute is None:
        raise _unknown(connection)
    return execute


def _is_alchemys(execute: Callable[..., Any]) -> bool:
    return getattr(execute, "__name__", "") == "exec_driver_sql"


async def _awaited(result: Any) -> Any:
    return await result if inspect.isawaitable(result) else result


def _unknown(connection: Any) -> MicroflowError:
    return MicroflowError(
        f"{type(connection).__module__}.{type(connection).__qualname__} is no connection that an outbox can write on.",
        why="`append_sync` takes blocking connections, `await append` asynchronous ones too.",
        fix="Pass a connection of sqlite3, aiosqlite or SQLAlchemy, or a handler's Connection.",
    )


def _lacks_outbox(error: Exception) -> bool:
    return "no such table: microflow_outbox" in str(error)


def _no_outbox(databases: Iterable[Sequence[Any]]) -> SqlError:
    """`databases` are the rows of `pragma database_list`: number, name, file."""
    path = next((file for _, name, file in databases if name == "main" and file), None)
    return SqlError(
        f"{path or 'This database'} has no outbox yet.",
        why="microflow makes its tables when a service or a relay first opens the file.",
        fix=f"microflow relay --database {shlex.quote(f'sqlite:///{path}') if path else 'sqlite:///PATH'}",
    )


@contextmanager
def _explained() -> Iterator[None]:
    try:
        yield
    except Exception as error:
        cause = getattr(error, "orig", error)  # SQLAlchemy's errors hold the driver's
        if not isinstance(cause, sqlite3.Error) or _lacks_outbox(error):
            raise
        raise translate(cause) from cause
