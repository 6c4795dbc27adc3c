"""Events from outside a handler, on SQLite: a row in the outbox, one more statement of the caller's transaction.

A relay learns of it by looking at the file.
"""

from __future__ import annotations

import shlex

from microflow.callers import Rows, Steps, check_not_kept_out
from microflow.errors import SqlError
from microflow.ports import OutboxRow
from microflow.stores.sqlite.outbox import SQL, values

DATABASES = "pragma database_list"

NO_CHECKPOINTS = "pragma wal_autocheckpoint = 0"
"""The caller's connection makes no checkpoints beside ours: before SQLite 3.51.3 two at once could corrupt the file."""


def append(service: str, row: OutboxRow) -> Steps:
    """What writes an event to the outbox. Raises SqlError where there is none, IdentityError if only a newer microflow
    may write to it; other errors are the caller's own."""
    try:
        yield NO_CHECKPOINTS, ()
        yield SQL["append"], values(service, row)
    except Exception as error:
        check_not_kept_out(error)
        if "no such table: microflow_outbox" not in str(error):
            raise
        raise _no_outbox((yield DATABASES, ())) from None


def _no_outbox(databases: Rows) -> SqlError:
    """`databases` are the rows of `pragma database_list`: number, name, file."""
    path = next((file for _, name, file in databases if name == "main" and file), None)
    return SqlError(
        f"{path or 'This database'} has no outbox yet.",
        why="microflow makes its tables when a service or a relay first opens the file.",
        fix=f"microflow relay --database {shlex.quote(f'sqlite:///{path}') if path else 'sqlite:///PATH'}",
    )
