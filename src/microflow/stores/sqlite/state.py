"""A SQLite file as it is, read without making, migrating or locking anything."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

from microflow.embedded.errors import cannot_open
from microflow.embedded.statements import statements
from microflow.ports import DatabaseState, TopicPartition
from microflow.stores.sqlite import tables
from microflow.stores.sqlite.columns import instant

SQL = statements(Path(__file__).with_name("state.sql"))
PRODUCT = f"SQLite {sqlite3.sqlite_version}"


def state_of(path: Path, *, service: str) -> DatabaseState:
    """What a file says of itself, and what it holds of a service. Raises StoreUnavailable for what is no database."""
    known = tables.migrations()
    files = [file.stem for file in known.values()]
    nothing = DatabaseState(product=PRODUCT, version=0, known=max(known), pending=tuple(files))
    if not path.exists():
        return nothing
    try:
        with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as connection:
            return _read(connection, service, nothing)
    except sqlite3.Error as cause:
        raise cannot_open(path, cause) from cause


def _read(connection: sqlite3.Connection, service: str, nothing: DatabaseState) -> DatabaseState:
    if not _value(connection, "has tables"):
        return nothing
    version = int(_value(connection, "version"))
    if version == 0:
        return nothing
    if version > nothing.known:
        return replace(nothing, version=version, needs=version, pending=())
    waiting, oldest = connection.execute(SQL["outbox"]).fetchone()
    return DatabaseState(
        product=PRODUCT,
        version=version,
        known=nothing.known,
        needs=version,
        pending=tuple(path.stem for number, path in tables.migrations().items() if number > version),
        applied=dict(connection.execute(SQL["applied"], (service,))),
        cluster_id=_value(connection, "cluster"),
        services=tuple(name for (name,) in connection.execute(SQL["services"])),
        watermarks={
            TopicPartition(topic, number): watermark
            for topic, number, watermark in connection.execute(SQL["watermarks"], (service,))
        },
        outbox=int(waiting),
        outbox_oldest=instant(oldest) if oldest is not None else None,
        inbox=int(_value(connection, "inbox")),
        parked=int(_value(connection, "parked", service)),
        dead_letters=int(_value(connection, "dead letters", service)),
    )


def _value(connection: sqlite3.Connection, name: str, *parameters: str) -> Any:
    return connection.execute(SQL[name], parameters).fetchone()[0]
