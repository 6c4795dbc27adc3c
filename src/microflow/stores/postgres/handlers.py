"""Which handlers a service has, whatever the process, and which process has which."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import asynccontextmanager
from datetime import datetime

from microflow.errors import RegistryChanged
from microflow.handlers import Trigger
from microflow.ports import Registered, Registry
from microflow.stores.postgres.errors import translated
from microflow.stores.postgres.locks import REGISTRY
from microflow.stores.postgres.names import HANDLERS as SQL
from microflow.stores.postgres.names import Names
from microflow.stores.postgres.renaming import rename
from microflow.stores.postgres.session import Session
from microflow.stores.postgres.sessions import Sessions
from microflow.stores.postgres.silence import begin_alone


class PostgresHandlers:
    """`microflow.ports.Handlers`."""

    def __init__(self, sessions: Sessions, names: Names) -> None:
        self._sessions = sessions
        self._names = names
        self._service = names.service
        self._version = 0

    async def registry(self, *, now: datetime) -> Registry:
        async with self._sessions.session() as session:
            with translated():
                return await self._read(session, now)

    async def register(
        self, handlers: Mapping[str, Collection[Trigger]], *, owner: str, now: datetime, until: datetime
    ) -> Registry:
        before = await self.registry(now=now)
        known = {name: before.handlers[name].triggers.keys() for name in handlers if name in before.handlers}
        if any(not known.get(name, frozenset()) >= set(triggers) for name, triggers in handlers.items()):
            async with self._alone() as session:
                if await self._add(session, handlers, now):
                    await session.fetch(SQL["new version"], self._service)
        async with self._sessions.session() as session:
            with translated():
                await session.fetch(SQL["forget the dead"], self._service, now)
                await session.fetch(SQL["attend"], self._service, owner, until, _as_json(handlers))
                return await self._read(session, now)

    async def leave(self, *, owner: str) -> None:
        await self._sessions.fetch(SQL["leave"], self._service, owner)

    async def forget(
        self, gone: Mapping[str, Collection[Trigger]], *, now: datetime, although_awaited: bool = False
    ) -> Mapping[str, frozenset[Trigger]]:
        async with self._alone() as session:
            registry = await self._read(session, now)
            awaited = [] if although_awaited else await session.fetch(SQL["something waits"], self._service, list(gone))
            waited_for = {row["name"] for row in awaited}
            going: dict[str, frozenset[Trigger]] = {}
            for name in gone.keys() & registry.handlers.keys():
                forgotten = _nobodys(registry, name, gone[name])
                if forgotten and not (name in waited_for and forgotten == registry.handlers[name].triggers.keys()):
                    going[name] = forgotten
            if going:
                await session.fetch(SQL["forget triggers"], self._service, *_columns(going))
                await session.fetch(SQL["new version"], self._service)
        return going

    async def rename(self, old: str, new: str, *, now: datetime) -> bool:
        async with self._alone() as session:
            if any(old in handlers for handlers in (await self._read(session, now)).processes.values()):
                return False
            await rename(session, self._names, old, new, now=now)
            await session.fetch(SQL["new version"], self._service)
        self._names.forget()
        return True

    @asynccontextmanager
    async def _alone(self) -> AsyncIterator[Session]:
        """A transaction after all those whose fence has passed, and before all those that come to theirs."""
        async with self._sessions.session() as session:
            with translated():
                await begin_alone(session, REGISTRY)
                yield session
                await session.script("commit")

    async def _add(self, session: Session, handlers: Mapping[str, Collection[Trigger]], now: datetime) -> bool:
        renamed = {row["name"] for row in await session.fetch(SQL["renamed"], self._service)}
        added = {name: triggers for name, triggers in handlers.items() if name not in renamed}
        await session.fetch(SQL["intern"], self._service, list(added))
        return bool(await session.fetch(SQL["add triggers"], self._service, *_columns(added), now))

    async def _read(self, session: Session, now: datetime) -> Registry:
        version = await _version(session, self._service)
        if version != self._version:  # a name may be another's now
            self._version = version
            self._names.forget()
        triggers: dict[str, dict[Trigger, Mapping[int, int]]] = {}
        since: dict[str, datetime] = {}
        for name, topic, event_type, offsets, registered_at in await session.fetch(SQL["triggers"], self._service):
            of_partition = {int(number): offset for number, offset in json.loads(offsets).items()}
            triggers.setdefault(name, {})[Trigger(event_type, topic)] = of_partition
            since[name] = min(registered_at, since.get(name, registered_at))
        processes = await session.fetch(SQL["processes"], self._service, now)
        return Registry(
            version=version,
            handlers={name: Registered(triggers[name], since[name]) for name in triggers},
            processes={owner: _from_json(handlers) for owner, handlers in processes},
            renamed=dict(await session.fetch(SQL["renamed"], self._service)),
        )


def fence_query(service: str, version: int) -> str:
    """What finds one row if this is the version of a service's registry."""
    text = service.replace("'", "''")
    return (
        f"select 1 where {version} = coalesce((select version from microflow.registries where service = '{text}'), 0)"
    )


async def changed(session: Session, service: str) -> RegistryChanged:
    """The error that says which version the registry has."""
    return RegistryChanged(await _version(session, service))


async def renew_version(session: Session, service: str) -> None:
    """Have every process read the registry anew."""
    await session.fetch(SQL["new version"], service)


async def _version(session: Session, service: str) -> int:
    rows = await session.fetch(SQL["version"], service)
    return int(rows[0][0]) if rows else 0


def _nobodys(registry: Registry, name: str, triggers: Collection[Trigger]) -> frozenset[Trigger]:
    """Those of a handler's triggers that are to be forgotten, and that no live process has."""
    live = {trigger for handlers in registry.processes.values() for trigger in handlers.get(name, ())}
    return frozenset(registry.handlers[name].triggers.keys() & set(triggers) - live)


def _columns(handlers: Mapping[str, Collection[Trigger]]) -> tuple[list[str], list[str], list[str]]:
    rows = [(name, each.topic, each.event_type) for name, triggers in sorted(handlers.items()) for each in triggers]
    return [name for name, _, _ in rows], [topic for _, topic, _ in rows], [each for _, _, each in rows]


def _as_json(handlers: Mapping[str, Collection[Trigger]]) -> str:
    return json.dumps(
        {name: [[each.topic, each.event_type] for each in triggers] for name, triggers in handlers.items()}
    )


def _from_json(handlers: str) -> dict[str, frozenset[Trigger]]:
    return {
        name: frozenset(Trigger(event_type, topic) for topic, event_type in triggers)
        for name, triggers in json.loads(handlers).items()
    }
