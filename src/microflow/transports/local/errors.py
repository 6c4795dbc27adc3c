"""What SQLite and the operating system say about the log's file, as the error of a transport."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from microflow.embedded.errors import translate
from microflow.errors import LogGone, StoreError, StoreGone, TransportError


@contextlib.contextmanager
def as_transport_errors(path: Path) -> Iterator[None]:
    """Raise a TransportError for whatever the database inside raises."""
    try:
        yield
    except (sqlite3.Error, StoreError, OSError) as cause:
        raise transport_error(path, cause) from cause


def transport_error(path: Path, cause: sqlite3.Error | StoreError | OSError) -> TransportError:
    """The error that says what happened to the log in `path`, why, and what helps."""
    said = translate(cause) if isinstance(cause, sqlite3.Error) else cause
    if isinstance(said, StoreGone):
        return LogGone(f"The log {said.what}", why=said.why, fix=said.fix)
    what = f"The log {path} cannot be used"
    if isinstance(said, OSError):
        return TransportError(f"{what}: {said}", fix="Check that its folder exists and may be written.")
    return TransportError(f"{what}: {said.what}", why=said.why, fix=said.fix)
