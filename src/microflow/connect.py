"""From settings to adapters: the only file that names them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from microflow.addresses import masked
from microflow.callers import DatabaseName, Steps, asynchronous, blocking, carry_out, carry_out_blocking
from microflow.errors import SettingsError
from microflow.ports import Clock, DatabaseState, OutboxRow, Store, Transport
from microflow.settings import MEMORY, Settings
from microflow.stores import sqlite
from microflow.stores.sqlite import SqliteStore
from microflow.transports.local import LocalTransport

SQLITE = "sqlite:///"
LOCAL = "local:"


def connect_transport(settings: Settings, *, clock: Clock) -> Transport:
    """The log that `settings.kafka` names. Raises TransportError, or SettingsError if it names none."""
    address = settings.kafka
    if address == MEMORY:
        return LocalTransport.open(Path("log.db"), clock=clock, memory=True)
    if address == LOCAL:
        raise SettingsError("The log 'local:' names no file.", fix="local:PATH, for example local:log.db")
    if address.startswith(LOCAL):
        return LocalTransport.open(Path(address.removeprefix(LOCAL)).expanduser(), clock=clock)
    raise SettingsError(
        f"The log {address!r} cannot be used: this version carries events in the embedded log only.",
        why="Kafka comes with the next version.",
        fix="Leave --log (MICROFLOW_KAFKA) out, or say local:PATH or memory:",
    )


async def connect_store(settings: Settings, *, service: str, clock: Clock) -> Store:
    """The database of a service. Raises StoreError if it cannot be opened, SettingsError if its URL is none."""
    url = settings.database_of(service)
    if url == MEMORY:
        return await SqliteStore.open(Path(f"{service}.db"), service=service, clock=clock, memory=True)
    return await SqliteStore.open(sqlite_path(url), service=service, clock=clock)


async def look_at_database(settings: Settings, *, service: str) -> DatabaseState:
    """What the database of a service says of itself, without changing it. Raises StoreError, SettingsError."""
    path = sqlite_path(settings.database_of(service))
    return await asyncio.to_thread(sqlite.state_of, path, service=service)


def dialect_of(url: str) -> str:
    """The dialect of SQL that a database speaks."""
    return "sqlite"


def own_tables(dialect: str, *, after: int = 0) -> str:
    """The SQL that makes our tables, or brings them from version `after` to this one."""
    return sqlite.script(after=after)


def sqlite_path(url: str) -> Path:
    """The file that a `sqlite:///PATH` names; PATH is relative to the working directory, or absolute."""
    if url == MEMORY:
        raise SettingsError("A database in memory can be read by its own process only.", fix=f"{SQLITE}PATH")
    scheme = url.partition(":")[0]
    if not url.startswith(SQLITE) or url == SQLITE:
        raise SettingsError(
            f"{masked(url)!r} is no address of a database: this version stores in SQLite only.",
            why=f"{scheme} comes with a later version." if scheme.startswith("postgres") else None,
            fix=f"{SQLITE}{url}" if "://" not in url and scheme != "sqlite" and url else f"{SQLITE}PATH",
        )
    return Path(url.removeprefix(SQLITE)).expanduser()


async def append_to(connection: Any, service: str, rows: Sequence[OutboxRow]) -> None:
    """Write outbox rows on a caller's own asynchronous connection, whichever library it is of."""
    caller = await asynchronous(connection)
    for row in rows:
        await carry_out(APPENDS[caller.database](service, row), caller)


def append_to_sync(connection: Any, service: str, rows: Sequence[OutboxRow]) -> None:
    """Write outbox rows on a caller's own blocking connection, whichever library it is of."""
    caller = blocking(connection)
    for row in rows:
        carry_out_blocking(APPENDS[caller.database](service, row), caller)


APPENDS: Mapping[DatabaseName, Callable[[str, OutboxRow], Steps]] = {"sqlite": sqlite.append}
