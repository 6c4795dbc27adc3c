"""The log's file: made when it is missing, refused when another version of microflow wrote it."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path

from microflow.embedded.database import Database
from microflow.embedded.statements import statements
from microflow.errors import TransportError

FORMAT = 1
"""Grows when an older microflow could not work with the file any more."""

PATIENCE_MILLISECONDS = 5000

HERE = Path(__file__).parent
SQL = statements(HERE / "queries.sql")


def prepare(database: Database, *, new_id: Callable[[], str]) -> str:
    """Make the tables if they are missing; return the log's cluster id. Raises TransportError, sqlite3.Error."""
    found = _read(database.reader)
    if found is None:
        _create(database.writer, new_id=new_id)
        found = _read(database.reader)
    assert found is not None
    written, cluster_id = found
    if written != FORMAT:
        raise TransportError(
            f"the log {database.path} has format {written}; this microflow reads format {FORMAT}",
            why=f"{'a newer' if written > FORMAT else 'an older'} microflow wrote it",
            fix="run every service of this log with the same version of microflow, or name another file",
        )
    return cluster_id


def _read(connection: sqlite3.Connection) -> tuple[int, str] | None:
    known = connection.execute("select 1 from sqlite_master where name = 'microflow_log'").fetchone()
    return connection.execute(SQL["format"]).fetchone() if known else None


def _create(connection: sqlite3.Connection, *, new_id: Callable[[], str]) -> None:
    # Two processes that start on a new file meet here; this is the one moment when waiting may hold up the loop.
    connection.execute(f"pragma busy_timeout = {PATIENCE_MILLISECONDS}")
    try:
        connection.execute("begin immediate")
        if _read(connection) is None:
            for statement in (HERE / "schema.sql").read_text(encoding="utf-8").split(";"):
                if statement.strip():
                    connection.execute(statement)
            connection.execute(SQL["found log"], (FORMAT, new_id()))
        connection.execute("commit")
    finally:
        if connection.in_transaction:
            connection.execute("rollback")
        connection.execute("pragma busy_timeout = 0")
