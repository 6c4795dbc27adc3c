"""Which handlers a service has, whatever the process, and which process has which."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Collection, Mapping
from datetime import datetime

from microflow.embedded.database import Database
from microflow.errors import RegistryChanged
from microflow.handlers import Trigger
from microflow.ports import Registered, Registry
from microflow.stores.sqlite.columns import instant, microseconds
from microflow.stores.sqlite.names import HANDLERS as SQL
from microflow.stores.sqlite.names import Names, NamesInTransaction
from microflow.stores.sqlite.renaming import rename


class SqliteHandlers:
    """`microflow.ports.Handlers`."""

    def __init__(self, database: Database, names: Names) -> None:
        self._database = database
        self._names = names
        self._service = names.service
        self._version = 0

    async def registry(self, *, now: datetime) -> Registry:
        with self._database.reading() as connection:
            return self._read(connection, now)

    async def register(
        self, handlers: Mapping[str, Collection[Trigger]], *, owner: str, now: datetime, until: datetime
    ) -> Registry:
        before = await self.registry(now=now)
        known = {name: before.handlers[name].triggers.keys() for name in handlers if name in before.handlers}
        is_new = any(not known.get(name, frozenset()) >= set(triggers) for name, triggers in handlers.items())
        async with self._database.writing(synced=is_new) as connection:
            if is_new and self._add(connection, handlers, now):
                connection.execute(SQL["new version"], (self._service,))
            connection.execute(SQL["forget the dead"], (self._service, microseconds(now)))
            attendance = (self._service, owner, microseconds(until), _as_json(handlers))
            connection.execute(SQL["attend"], attendance)
            return self._read(connection, now)

    async def leave(self, *, owner: str) -> None:
        async with self._database.writing(synced=False) as connection:
            connection.execute(SQL["leave"], (self._service, owner))

    async def forget(
        self, gone: Mapping[str, Collection[Trigger]], *, now: datetime, although_awaited: bool = False
    ) -> Mapping[str, frozenset[Trigger]]:
        async with self._database.writing() as connection:
            registry = self._read(connection, now)
            forgotten = {
                name: going
                for name, triggers in gone.items()
                if (going := self._forget(connection, registry, name, triggers, although_awaited=although_awaited))
            }
            if forgotten:
                connection.execute(SQL["new version"], (self._service,))
        return forgotten

    async def rename(self, old: str, new: str, *, now: datetime) -> bool:
        async with self._database.writing() as connection:
            if any(old in handlers for handlers in self._read(connection, now).processes.values()):
                return False
            rename(connection, NamesInTransaction(self._names, connection), old, new, now=now)
            connection.execute(SQL["new version"], (self._service,))
        return True

    def _add(self, connection: sqlite3.Connection, handlers: Mapping[str, Collection[Trigger]], now: datetime) -> bool:
        names = NamesInTransaction(self._names, connection)
        renamed = {name for name, _ in connection.execute(SQL["renamed"], (self._service,))}
        added = 0
        for name, triggers in sorted(handlers.items()):
            if name in renamed:
                continue
            for trigger in triggers:
                row = (names.handler(name), trigger.topic, trigger.event_type, self._service, microseconds(now))
                added += connection.execute(SQL["add trigger"], row).rowcount
        return added > 0

    def _forget(
        self,
        connection: sqlite3.Connection,
        registry: Registry,
        name: str,
        triggers: Collection[Trigger],
        *,
        although_awaited: bool,
    ) -> frozenset[Trigger]:
        """Forget what may be forgotten of a handler, and return it."""
        if name not in registry.handlers:
            return frozenset()
        known = registry.handlers[name].triggers.keys()
        live = {trigger for handlers in registry.processes.values() for trigger in handlers.get(name, ())}
        going = known & set(triggers) - live
        number = NamesInTransaction(self._names, connection).handler(name)
        keeps = going == known and not although_awaited
        if not going or (keeps and connection.execute(SQL["something waits"], (number,)).fetchone()[0]):
            return frozenset()
        rows = [(number, trigger.topic, trigger.event_type) for trigger in going]
        connection.executemany(SQL["forget trigger"], rows)
        return frozenset(going)

    def _read(self, connection: sqlite3.Connection, now: datetime) -> Registry:
        version = _version(connection, self._service)
        if version != self._version:  # a name may be another's now
            self._version = version
            self._names.handlers.clear()
        triggers: dict[str, dict[Trigger, Mapping[int, int]]] = {}
        since: dict[str, datetime] = {}
        for name, topic, event_type, offsets, registered_at in connection.execute(SQL["triggers"], (self._service,)):
            of_partition = {int(number): offset for number, offset in json.loads(offsets).items()}
            triggers.setdefault(name, {})[Trigger(event_type, topic)] = of_partition
            since[name] = min(instant(registered_at), since.get(name, instant(registered_at)))
        processes = connection.execute(SQL["processes"], (self._service, microseconds(now)))
        return Registry(
            version=version,
            handlers={name: Registered(triggers[name], since[name]) for name in triggers},
            processes={owner: _from_json(handlers) for owner, handlers in processes},
            renamed=dict(connection.execute(SQL["renamed"], (self._service,))),
        )


def check_version(connection: sqlite3.Connection, service: str, known: int) -> None:
    """Raise RegistryChanged unless this is the version; the write lock keeps it so."""
    version = _version(connection, service)
    if version != known:
        raise RegistryChanged(version)


def renew_version(connection: sqlite3.Connection, service: str) -> None:
    """Have every process read the registry anew."""
    connection.execute(SQL["new version"], (service,))


def _version(connection: sqlite3.Connection, service: str) -> int:
    row = connection.execute(SQL["version"], (service,)).fetchone()
    return 0 if row is None else int(row[0])


def _as_json(handlers: Mapping[str, Collection[Trigger]]) -> str:
    return json.dumps(
        {name: [[each.topic, each.event_type] for each in triggers] for name, triggers in handlers.items()}
    )


def _from_json(handlers: str) -> dict[str, frozenset[Trigger]]:
    return {
        name: frozenset(Trigger(event_type, topic) for topic, event_type in triggers)
        for name, triggers in json.loads(handlers).items()
    }
