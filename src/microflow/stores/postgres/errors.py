"""What PostgreSQL and its driver say, in the words of `microflow.errors`, with what a user can do about it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import asyncpg
from asyncpg.exceptions import InternalClientError, InvalidCachedStatementError, OutdatedSchemaCacheError

from microflow.errors import (
    CheckViolation,
    ForeignKeyViolation,
    IntegrityViolation,
    NotNullViolation,
    SqlError,
    StoreConflict,
    StoreError,
    StoreUnavailable,
    TransactionAborted,
    UniqueViolation,
)

FROM_DRIVER = (asyncpg.PostgresError, asyncpg.InterfaceError, InternalClientError, OSError)
"""What the driver raises on behalf of the server, of the network and of itself."""
STALE = (InvalidCachedStatementError, OutdatedSchemaCacheError)
"""A prepared statement does not fit its table any more."""
LOST_STATEMENT = "26000"
"""A pooler between us and the server has lost a prepared statement."""

VIOLATIONS: dict[str, type[IntegrityViolation]] = {
    "23505": UniqueViolation,
    "23503": ForeignKeyViolation,
    "23502": NotNullViolation,
    "23514": CheckViolation,
}

CONFLICTS = frozenset(
    {
        "40001",  # serialization failure
        "40P01",  # deadlock
        "55P03",  # lock_timeout
        "57014",  # statement_timeout
        LOST_STATEMENT,
    }
)
"""Another transaction was in the way: on a fresh connection the same step may succeed."""

UNAVAILABLE_CLASSES = frozenset({"08", "28", "53", "57", "58", "F0", "XX"})
UNAVAILABLE = frozenset(
    {
        "25006",  # read-only: a standby, or a primary that became one
        "25P03",  # idle_in_transaction_session_timeout: the server has ended the session
        "25P04",  # transaction_timeout
        "3D000",  # no such database
        "40003",  # nobody knows whether the statement was completed
    }
)

WHAT_HELPS: dict[str, tuple[str, str]] = {
    "25006": (
        "The database only reads: its server is a standby, or default_transaction_read_only is on.",
        "Name the primary in MICROFLOW_DATABASE, or:  alter database NAME reset default_transaction_read_only",
    ),
    "53100": ("Its disk is full.", "Free some space; what was committed is safe."),
    "53300": (
        "It has no connection left.",
        "Raise max_connections, run fewer processes, or put a pooler in between.",
    ),
}


def translate(error: BaseException) -> StoreError:
    """The error of `microflow.errors` that says what the server or the driver said."""
    if isinstance(error, STALE):
        return StoreConflict(f"a table was changed while it was in use: {_text(error)}")
    if isinstance(error, asyncpg.PostgresError):
        return _of_state(error)
    if isinstance(error, asyncpg.InterfaceError) and not _lost(error):
        return SqlError(_text(error))
    if isinstance(error, UnicodeError | ValueError | TypeError | ArithmeticError):
        return SqlError(_text(error))
    return StoreUnavailable(f"the database cannot be reached: {_text(error)}")


@contextlib.contextmanager
def translated() -> Iterator[None]:
    """Raise StoreErrors for the errors of the server, the driver and the network inside."""
    try:
        yield
    except FROM_DRIVER as cause:
        raise translate(cause) from cause


def breaks_connection(error: BaseException | None) -> bool:
    """Whether a connection must not be used again after this error, whatever it says of itself."""
    cause = error.__cause__ if isinstance(error, StoreError) and error.__cause__ is not None else error
    if isinstance(cause, STALE) or (isinstance(cause, asyncpg.PostgresError) and _state(cause) == LOST_STATEMENT):
        return True
    return isinstance(cause, FROM_DRIVER) and isinstance(translate(cause), StoreUnavailable)


def _of_state(error: asyncpg.PostgresError) -> StoreError:
    state = _state(error)
    if state.startswith("23"):
        return VIOLATIONS.get(state, IntegrityViolation)(_text(error))
    if state in CONFLICTS:
        return StoreConflict(_text(error))
    if state == "25P02":
        return TransactionAborted(_text(error))
    if not state or state[:2] in UNAVAILABLE_CLASSES or state in UNAVAILABLE:
        why, fix = WHAT_HELPS.get(state, (None, None))
        return StoreUnavailable(_text(error), why=why, fix=fix)
    return SqlError(_text(error))


def _lost(error: asyncpg.InterfaceError) -> bool:
    text = str(error)
    return not isinstance(error, asyncpg.DataError) and (
        "connection" in text or "another operation" in text or "cannot perform operation" in text
    )


def _state(error: asyncpg.PostgresError) -> str:
    return str(getattr(error, "sqlstate", None) or "")


def _text(error: BaseException) -> str:
    detail = getattr(error, "detail", None)
    text = str(error) or type(error).__name__
    return f"{text} ({detail})" if detail and detail not in text else text
