"""Which services have a database here: for verbs that look into one without running its service."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from microflow.cli.paths import database_in_words
from microflow.cli.typed_targets import load_typed
from microflow.clocks import SystemClock
from microflow.connect import SQLITE, connect_store, is_postgres, look_at_database, sqlite_path
from microflow.errors import TargetError, nearest
from microflow.ports import Store
from microflow.service import build
from microflow.settings import Settings

MOST_NAMES = 3
NOBODY = "relay"
"""The name in which a database of several services is opened, for what is the database's."""


def services_meant(target: str | None, service: str | None, *, database: str | None, settings: Settings) -> list[str]:
    """The services that were asked for: of a target, by name, or all that have a database here.

    Raises TargetError if there is none.
    """
    if target is not None:
        names = [build(load_typed(target).service, topics=settings.topics).name]
    elif service is not None:
        names = [service]
    elif settings.database is not None:
        return _services_in(settings.database, settings)
    else:
        names = known_services(settings)
        if not names:
            raise TargetError(
                "No service has a database here.",
                why=f"They are looked for in {settings.folder}.",
                fix="Name it:  --database postgresql://…     or  --database sqlite:///PATH",
            )
    for name in names:
        _check_there(name, settings)
    return names


def service_meant(target: str | None, service: str | None, *, database: str | None, settings: Settings) -> str:
    """The one service that was asked for. Raises TargetError if there is none, or several."""
    names = services_meant(target, service, database=database, settings=settings)
    if len(names) > 1:
        place = "here" if settings.database is None else f"in {database_in_words(settings.database)}"
        raise TargetError(
            "Of which service?",
            why=f"There are several {place}: {', '.join(names)}.",
            fix="Add " + " or ".join(f"--service {name}" for name in names[:MOST_NAMES]),
        )
    return names[0]


def known_services(settings: Settings) -> list[str]:
    """The services with a database here, by name."""
    # Also where another log is used now: the embedded one stays behind when a service moves to Kafka.
    logs = {settings.embedded_log, Path(settings.kafka.removeprefix("local:"))}
    by_file = {path: path.stem for path in sorted(settings.folder.glob("*.db")) if path not in logs}
    for name, url in settings.databases.items():
        if not is_postgres(url) and (path := _file(name, settings)).is_file():
            by_file.setdefault(path, name)
    return sorted(by_file.values())


@asynccontextmanager
async def opened(service: str, settings: Settings) -> AsyncIterator[Store]:
    """The database of a service, without its service."""
    store = await connect_store(settings, service=service, clock=SystemClock())
    try:
        yield store
    finally:
        await store.close()


def _services_in(url: str, settings: Settings) -> list[str]:
    """The services that have run with a database. Raises TargetError if there is none."""
    state = asyncio.run(look_at_database(settings, service=NOBODY))
    if not state.services:
        raise TargetError(
            f"No service has run with {database_in_words(url)}.",
            why="Every service that runs leaves its handlers there.",
            fix="--database of another one",
        )
    return list(state.services)


def _check_there(name: str, settings: Settings) -> None:
    # Opening would make the file or the tables, and say that all is well with a service that never ran.
    if is_postgres(settings.database_of(name)):
        _check_on_server(name, settings)
        return
    path = _file(name, settings)
    if path.is_file():
        return
    known = known_services(settings)
    near = nearest(name, known)
    raise TargetError(
        f"There is no database of {name}: {path} does not exist.",
        why=f"Services with a database here: {', '.join(known)}." if known else None,
        fix=f"Did you mean --service {near}?"
        if near and near != name
        else f"--database postgresql://… or {SQLITE}PATH",
    )


def _check_on_server(name: str, settings: Settings) -> None:
    place = database_in_words(settings.database_of(name))
    state = asyncio.run(look_at_database(settings, service=name))
    if state.version == 0:
        raise TargetError(f"There are no tables of microflow in {place}.", fix="--database postgresql://…")
    if name not in state.services:
        near = nearest(name, state.services)
        raise TargetError(
            f"No service {name} has run with {place}.",
            why=f"These have: {', '.join(state.services)}." if state.services else None,
            fix=f"Did you mean --service {near}?" if near else "--database postgresql://…",
        )


def _file(name: str, settings: Settings) -> Path:
    return sqlite_path(settings.database_of(name))
