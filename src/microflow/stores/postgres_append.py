"""Events from outside a handler, on PostgreSQL: a row in the outbox, one more statement of the caller's transaction.

No lock is taken: the order of a key is that of the caller's own locks, and nobody waits for a transaction that is left
open. Nothing is notified either, because that would make all commits of the database queue up.

It stands beside the store and not in it, because it needs no driver: programs that append bring one of their own.
"""

from __future__ import annotations

from pathlib import Path

from microflow.callers import Steps, check_not_kept_out
from microflow.embedded.headers import encode_headers
from microflow.embedded.statements import statements
from microflow.errors import SqlError
from microflow.ports import OutboxRow

APPEND = statements(Path(__file__).parent / "postgres" / "outbox.sql")["append"]

MISSING = frozenset({"42P01", "3F000"})
"""The table, or the schema that it is in."""


def append(service: str, row: OutboxRow) -> Steps:
    """What writes an event to the outbox. Raises SqlError where there is none, IdentityError if only a newer microflow
    may write to it; other errors are the caller's own."""
    try:
        yield APPEND, (service, row.topic, row.key, row.value, encode_headers(row.headers), row.created_at)
    except Exception as error:
        check_not_kept_out(error)
        if not _lacks_outbox(error):
            raise
        raise SqlError(
            "This database has no outbox yet.",
            why="microflow makes its tables when a service or a relay first opens a database.",
            fix="microflow relay --database postgresql://USER@HOST/NAME",
        ) from None


def _lacks_outbox(error: BaseException) -> bool:
    # Each driver has its own word for the server's code, and the libraries above keep the driver's error in their own.
    layers = (error, getattr(error, "orig", None), error.__cause__)
    codes = {getattr(each, word, None) for each in layers for word in ("sqlstate", "pgcode")}
    return not codes.isdisjoint(MISSING) and "microflow" in str(error)
