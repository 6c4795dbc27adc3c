"""What SQLite and the operating system say about the log's file, told as what a user can do about it."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from microflow.errors import StoreError, TransportError

WHAT_HELPS = {
    sqlite3.SQLITE_FULL: ("the disk is full", "free some space; nothing was lost, the work goes on by itself"),
    sqlite3.SQLITE_NOTADB: ("the file is not an SQLite database", "name another file, or move this one away"),
    sqlite3.SQLITE_CORRUPT: ("the file is damaged", "restore it from a copy, or move it away to begin a new log"),
    sqlite3.SQLITE_READONLY: ("the file or its folder is read-only", "make both writable for this user"),
    sqlite3.SQLITE_CANTOPEN: ("the file cannot be opened", "check that its folder exists and is writable"),
    sqlite3.SQLITE_IOERR: ("the file system failed", "check the disk, and that it is not a network file system"),
    sqlite3.SQLITE_BUSY: ("another process holds its write lock", "stop that process, or wait until it is done"),
}


@contextlib.contextmanager
def as_transport_errors(path: Path) -> Iterator[None]:
    """Raise a TransportError for whatever the database inside raises."""
    try:
        yield
    except (sqlite3.Error, StoreError, OSError) as cause:
        raise transport_error(path, cause) from cause


def transport_error(path: Path, cause: BaseException) -> TransportError:
    """The error that says what happened to the log in `path`, why, and what helps."""
    code = _sqlite_code(cause)
    why, fix = WHAT_HELPS.get(code, (str(cause), None)) if code is not None else (str(cause), None)
    if code is not None and str(cause) not in why:
        why = f"{why} ({cause})"
    return TransportError(f"the log {path} cannot be used", why=why, fix=fix)


def _sqlite_code(error: BaseException | None) -> int | None:
    while error is not None:
        if isinstance(error, sqlite3.Error):
            code = getattr(error, "sqlite_errorcode", None)
            return None if code is None else code & 0xFF
        error = error.__cause__
    return None
