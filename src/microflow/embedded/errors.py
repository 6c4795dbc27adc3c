"""What SQLite says, in the words of `microflow.errors`, with what a user can do about it."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from microflow.errors import (
    CheckViolation,
    ForeignKeyViolation,
    IntegrityViolation,
    NotNullViolation,
    SqlError,
    StoreError,
    StoreUnavailable,
    UniqueViolation,
)

VIOLATIONS: dict[int, type[IntegrityViolation]] = {
    sqlite3.SQLITE_CONSTRAINT_UNIQUE: UniqueViolation,
    sqlite3.SQLITE_CONSTRAINT_PRIMARYKEY: UniqueViolation,
    sqlite3.SQLITE_CONSTRAINT_ROWID: UniqueViolation,
    sqlite3.SQLITE_CONSTRAINT_FOREIGNKEY: ForeignKeyViolation,
    sqlite3.SQLITE_CONSTRAINT_NOTNULL: NotNullViolation,
    sqlite3.SQLITE_CONSTRAINT_CHECK: CheckViolation,
}

UNAVAILABLE: frozenset[int] = frozenset(
    {
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_READONLY,
        sqlite3.SQLITE_CORRUPT,
        sqlite3.SQLITE_NOTADB,
        sqlite3.SQLITE_PROTOCOL,
        sqlite3.SQLITE_NOMEM,
    }
)

BUSY = frozenset({sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED})

WHAT_HELPS: dict[int, tuple[str, str]] = {
    sqlite3.SQLITE_FULL: ("The disk is full.", "Free some space; what was committed is safe."),
    sqlite3.SQLITE_IOERR: (
        "Reading or writing the disk failed.",
        "Look at the disk; a network file system will not do.",
    ),
    sqlite3.SQLITE_CANTOPEN: ("The file cannot be opened or made.", "Check that its folder exists and may be written."),
    sqlite3.SQLITE_READONLY: ("The file or its folder is read-only.", "Make both writable, or name another file."),
    sqlite3.SQLITE_CORRUPT: ("The file is damaged.", "Restore it from a backup."),
    sqlite3.SQLITE_NOTADB: ("The file is no SQLite database.", "Move it away, or name another file."),
    sqlite3.SQLITE_BUSY: ("Another process holds its lock.", "Stop that process, or wait until it is done."),
}


def cannot_open(path: Path, cause: sqlite3.Error | OSError) -> StoreUnavailable:
    """The error that says what is wrong with a file and what to do about it."""
    why, fix = WHAT_HELPS.get(_code(cause), (None, "Check that its folder exists and may be written."))
    return StoreUnavailable(f"Cannot open the database {path}: {cause}", why=why, fix=fix)


def translate(error: sqlite3.Error, path: Path | None = None) -> StoreError:
    """The error of `microflow.errors` that says what SQLite said, of which file if it is known."""
    if isinstance(error, sqlite3.IntegrityError):
        return VIOLATIONS.get(getattr(error, "sqlite_errorcode", 0), IntegrityViolation)(str(error))
    if _code(error) in UNAVAILABLE:
        why, fix = WHAT_HELPS.get(_code(error), (None, None))
        return StoreUnavailable(str(error) if path is None else f"{path}: {error}", why=why, fix=fix)
    return SqlError(str(error))


@contextlib.contextmanager
def translated(path: Path | None = None) -> Iterator[None]:
    """Raise StoreErrors for the errors of SQLite inside."""
    try:
        yield
    except sqlite3.Error as cause:
        raise translate(cause, path) from cause


def is_busy(error: sqlite3.Error) -> bool:
    """Whether somebody else's lock is all that is wrong."""
    return _code(error) in BUSY


def breaks_connection(error: BaseException | None) -> bool:
    """Whether a connection may go on failing after this error, although the disk is well again."""
    cause = error.__cause__ if isinstance(error, StoreError) else error
    return isinstance(cause, sqlite3.Error) and _code(cause) in UNAVAILABLE - BUSY


def _code(error: BaseException) -> int:
    """The primary result code; the higher bits of an extended one say where it came from."""
    return int(getattr(error, "sqlite_errorcode", 0)) & 0xFF
