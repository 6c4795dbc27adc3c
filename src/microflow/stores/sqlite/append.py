"""Events from outside a handler: a row in the outbox, inside the caller's own transaction.

Nothing here begins, commits or looks around the caller's library: the row is a statement like the caller's other
ones, so it is committed with them or not at all. A relay learns of it by looking at the file.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Awaitable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from microflow.embedded.errors import translate
from microflow.errors import SqlError
from microflow.ports import OutboxRow
from microflow.stores.sqlite.connection import SqliteConnection
from microflow.stores.sqlite.outbox import SQL, values


class AsyncDriver(Protocol):
    """A connection whose `execute` is awaited, as aiosqlite's."""

    def execute(self, sql: str, parameters: Any, /) -> Awaitable[Any]: ...


def append_sync(connection: sqlite3.Connection, service: str, row: OutboxRow) -> None:
    """Write an event to the outbox on the caller's connection, as one more statement of its transaction.

    A connection with an `isolation_level` begins a transaction for it as for any insert, and the caller commits it;
    one in autocommit mode outside a transaction commits it at once. Raises StoreError.
    """
    with _explained():
        connection.execute(SQL["append"], values(service, row))


async def append_async(connection: AsyncDriver | SqliteConnection, service: str, row: OutboxRow) -> None:
    """Write an event to the outbox on the caller's asynchronous connection, or on a handler's `Connection`.

    As `append_sync`: one more statement of whatever transaction the caller's library has. Raises StoreError.
    """
    if isinstance(connection, SqliteConnection):
        connection.append(service, row)
        return
    with _explained():
        await connection.execute(SQL["append"], values(service, row))


@contextmanager
def _explained() -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as cause:
        if "no such table: microflow_outbox" in str(cause):
            raise SqlError(
                "This database has no outbox.",
                why="microflow makes its tables when a service or a relay first opens the file.",
                fix="microflow relay --database sqlite:///PATH",
            ) from cause
        raise translate(cause) from cause
