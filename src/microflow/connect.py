"""From settings to adapters: the only file that names them."""

from __future__ import annotations

import asyncio
import importlib
import re
import shlex
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from microflow.addresses import masked
from microflow.callers import DatabaseName, Steps, asynchronous, blocking, carry_out, carry_out_blocking
from microflow.errors import MicroflowError, SettingsError
from microflow.ports import Clock, DatabaseState, Migration, OutboxRow, Store, Transport
from microflow.settings import MEMORY, Settings
from microflow.stores import postgres_append, sqlite
from microflow.stores.sqlite import SqliteStore
from microflow.transports.local import LocalTransport

SQLITE = "sqlite:///"
POSTGRES = ("postgresql://", "postgres://")
LOCAL = "local:"
SERVERS = re.compile(r"[\w.-]+(:\d+)?(,[\w.-]+(:\d+)?)*|\[[0-9a-fA-F:]+\](:\d+)?")


async def connect_transport(settings: Settings, *, clock: Clock) -> Transport:
    """The log that `settings.kafka` names, which has answered.

    Raises TransportError, LogUnreachable if nobody answers there, or SettingsError if it names none.
    """
    with _told_as_given(settings):
        return await _connect_transport(settings, clock=clock)


async def _connect_transport(settings: Settings, *, clock: Clock) -> Transport:
    address = settings.kafka
    if address == MEMORY:
        return LocalTransport.open(Path("log.db"), clock=clock, memory=True)
    if address == LOCAL:
        raise SettingsError("The log 'local:' names no file.", fix="local:PATH, for example local:log.db")
    if address.startswith(LOCAL):
        return LocalTransport.open(_with_folder(_path(address.removeprefix(LOCAL)), settings), clock=clock)
    if not SERVERS.fullmatch(address):
        raise SettingsError(
            f"The log {address!r} cannot be used: it is no address of Kafka, and no embedded log.",
            fix="HOST:PORT,… or local:PATH or memory:",
        )
    # Not at the top: the driver takes longer to import than everything that an embedded service needs.
    from microflow.transports.kafka import Given, KafkaTransport, read_client_settings

    given = {name: Given(*each) for name, each in settings.kafka_client.items()}
    return await KafkaTransport.open(read_client_settings(address, given))


async def connect_store(settings: Settings, *, service: str, clock: Clock) -> Store:
    """The database of a service, with our tables, unless settings say that no start makes them.

    Raises StoreError if it cannot be opened, SettingsError if its URL is none.
    """
    with _told_as_given(settings, service):
        return await _connect_store(settings, service=service, clock=clock)


async def _connect_store(settings: Settings, *, service: str, clock: Clock) -> Store:
    url = settings.database_of(service)
    migrate = settings.migrate == "auto"
    if url == MEMORY:
        return await SqliteStore.open(Path(f"{service}.db"), service=service, clock=clock, memory=True)
    check_database(url)
    if is_postgres(url):
        store: Store = await _postgres(url).PostgresStore.open(
            url, service=service, clock=clock, lanes=settings.lanes, migrate=migrate
        )
        return store
    path = _with_folder(sqlite_path(url), settings)
    return await SqliteStore.open(path, service=service, clock=clock, migrate=migrate)


async def look_at_database(settings: Settings, *, service: str) -> DatabaseState:
    """What the database of a service says of itself, without changing it. Raises StoreError, SettingsError."""
    with _told_as_given(settings, service):
        url = settings.database_of(service)
        check_database(url)
        if is_postgres(url):
            state: DatabaseState = await _postgres(url).state_of(url, service=service)
            return state
        path = _with_folder(sqlite_path(url), settings)
        return await asyncio.to_thread(sqlite.state_of, path, service=service)


@contextmanager
def _told_as_given(settings: Settings, service: str | None = None) -> Iterator[None]:
    """Errors inside call the addresses as they were given, so that what they tell to change is what is there."""
    try:
        yield
    except MicroflowError as error:
        error.fix = error.fix and settings.as_given(error.fix, service)
        raise


def check_database(url: str) -> None:
    """Raise SettingsError for what is no address of a database."""
    if url == MEMORY:
        return
    if not is_postgres(url):
        sqlite_path(url)
        return
    try:
        _ = urlsplit(url).port
    except ValueError as cause:
        raise SettingsError(
            f"{masked(url)!r} is no address of a database: {cause}.", fix="postgresql://USER@HOST:5432/NAME"
        ) from cause


def is_postgres(url: str) -> bool:
    """Whether a URL names a database on a PostgreSQL server."""
    return url.startswith(POSTGRES)


def dialect_of(url: str) -> str:
    """The dialect of SQL that a database speaks: `postgres` or `sqlite`."""
    return "postgres" if is_postgres(url) else "sqlite"


def own_tables(dialect: str, *, after: int = 0) -> str:
    """The SQL that makes our tables, or brings them from version `after` to this one."""
    script: str = _speaking(dialect).script(after=after)
    return script


def own_migration(dialect: str, service: str, migration: Migration) -> str:
    """The SQL that runs a migration of a service's own tables, and records it as a start does.

    Raises DefinitionError for one that a start would refuse.
    """
    script: str = _speaking(dialect).own_script(service, migration)
    return script


def scratch_databases(url: str, names: Collection[str]) -> AbstractAsyncContextManager[Mapping[str, str]]:
    """Fresh databases on a PostgreSQL server, each with its URL; they are gone after the block. Raises StoreError."""
    databases: AbstractAsyncContextManager[Mapping[str, str]] = _postgres(url).scratch_databases(url, names)
    return databases


async def fetch_rows(url: str, sql: str) -> Sequence[Any]:
    """The rows of one question to a PostgreSQL database. Raises StoreError."""
    rows: Sequence[Any] = await _postgres(url).fetch(url, sql)
    return rows


def import_drivers(settings: Settings) -> None:
    """Import what settings need: it takes longer than a question that is to be answered soon may."""
    if not settings.kafka.startswith(LOCAL) and settings.kafka != MEMORY:
        importlib.import_module("microflow.transports.kafka")
    for url in (settings.database, *settings.databases.values()):
        if url is not None and is_postgres(url):
            _postgres(url)


def _speaking(dialect: str) -> Any:
    return _postgres("The dialect postgres") if dialect == "postgres" else sqlite


def _postgres(url: str) -> Any:
    try:
        from microflow.stores import postgres  # asyncpg is an extra
    except ImportError as cause:
        if cause.name != "asyncpg":
            raise
        raise SettingsError(
            f"{masked(url)} needs the driver asyncpg, which is not installed.",
            fix="pip install 'microworkflow[postgres]'",
        ) from cause
    return postgres


def sqlite_path(url: str) -> Path:
    """The file that a `sqlite:///PATH` names; PATH is relative to the working directory, or absolute."""
    if url == MEMORY:
        raise SettingsError("A database in memory can be read by its own process only.", fix=f"{SQLITE}PATH")
    if not url.startswith(SQLITE) or url == SQLITE:
        raise SettingsError(
            f"{masked(url)!r} is no address of a database: that is postgresql://… or {SQLITE}PATH.",
            fix=f"--database {_address_meant(masked(url))}",
        )
    return _path(url.removeprefix(SQLITE))


def _address_meant(address: str) -> str:
    scheme, _, rest = address.partition("://")
    if scheme.startswith("postgres"):
        return f"postgresql://{rest or 'USER@HOST/NAME'}"
    if address and ":" not in address:
        return f"{SQLITE}{address}"
    return f"postgresql://USER@HOST/NAME     or  --database {SQLITE}PATH"


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


APPENDS: Mapping[DatabaseName, Callable[[str, OutboxRow], Steps]] = {
    "postgresql": postgres_append.append,
    "sqlite": sqlite.append,
}


def _path(text: str) -> Path:
    return Path(text).expanduser()


def _with_folder(path: Path, settings: Settings) -> Path:
    """A file whose folder is there, or is our own, which is made with the first file in it."""
    folder = path.parent
    if folder.is_dir() or folder.absolute() == settings.folder.absolute():
        return path
    raise SettingsError(
        f"{path} cannot be made: there is no folder {folder}.", fix=f"mkdir -p {shlex.quote(str(folder))}"
    )
