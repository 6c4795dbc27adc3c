"""Registration: which handlers the service has, whatever the process, and what of that this process does not have.

During a rolling deploy old and new versions of a service run side by side. Every process says which handlers it has;
an event for one that it does not have, a stranger, is parked for a process that has it. Every fence checks the version
of the registry, so nothing is committed by a process that does not know who else wants to see its events.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from datetime import timedelta

from microflow.errors import DefinitionError, nearest
from microflow.handlers import Trigger
from microflow.outages import Outages
from microflow.ports import Clock, Registry, Store, TopicPartition
from microflow.service import Definition
from microflow.signals import Signal

logger = logging.getLogger("microflow.registration")

LIFETIMES = 3
"""How many heartbeats a process may miss before it counts as dead."""


class Registration:
    """One process in the registry of its service.

    `learned` is called with the stored watermarks of the topics that strangers have been found for: what was read of
    them is to be read again. It is called in one go with the new version's becoming known, so no transaction is formed
    under that version by what was known before. `changed` is called when processes have come or gone, too.
    """

    def __init__(
        self,
        definition: Definition,
        store: Store,
        *,
        owner: str,
        clock: Clock,
        outages: Outages,
        heartbeat: timedelta,
        learned: Callable[[Mapping[TopicPartition, int]], None],
        changed: Callable[[], None],
    ) -> None:
        self._service = definition.name
        self._where = definition.where
        self._own = {handler.name: frozenset(handler.triggers) for handler in definition.handlers}
        self._store = store
        self._owner = owner
        self._clock = clock
        self._insist = outages.insist
        self._heartbeat = heartbeat
        self._learned = learned
        self._tell_changed = changed
        self._registry = Registry(0, {}, {}, {})
        self._strangers: dict[str, dict[str, list[str]]] = {}
        self._changing = asyncio.Lock()
        self._awake = Signal(clock)
        self._told: set[str] = set()

    @property
    def version(self) -> int:
        """The version of the registry that this process knows."""
        return self._registry.version

    @property
    def registry(self) -> Registry:
        """The registry as it was read last."""
        return self._registry

    def strangers(self, topic: str) -> Mapping[str, Collection[str]]:
        """The handlers that this process does not have, by the type on this topic that triggers them."""
        return self._strangers.get(topic, {})

    def is_stranger(self, handler: str, trigger: Trigger) -> bool:
        """Whether another version of the service has a handler of this trigger, and this one has not."""
        return handler in self.strangers(trigger.topic).get(trigger.event_type, ())

    async def check(self) -> None:
        """Change nothing. Raises DefinitionError if events wait for a handler that nobody has any more, or if this
        version still uses a name that was given up."""
        registry = await self._store.handlers.registry(now=self._clock.now())
        self._refuse_renamed(registry)
        living = self._living(registry)
        for name, count in sorted((await self._store.parking.counts()).items()):
            if name and name not in living:
                raise gone_error(self._service, name, count, known=self._own, where=self._where)

    async def enlist(self) -> None:
        """Say which handlers this process has, before it reads anything, and when nothing else may keep it from that:
        handlers and triggers that nobody has any more are retired, with a line that says so. Raises as `check` does.
        """
        await self.check()
        await self._register()
        await self._retire_gone()

    async def keep_up(self) -> None:
        """Stay alive in the registry, follow it, and retire what nobody has any more, until cancelled."""
        while True:
            await self._awake.wait(at_most=self._heartbeat)
            await self._insist(self._register)
            await self._insist(self._retire_gone)

    def wake(self) -> None:
        """Look at once: processes have come or gone."""
        self._awake.set()

    async def catch_up(self) -> None:
        """A fence has said that the registry has changed: learn how."""
        known = self.version
        async with self._changing:
            if self.version == known:  # nobody has caught up meanwhile
                await self._insist(self._register_now)

    async def leave(self) -> None:
        """This process ends: what only it had is nobody's now."""
        await self._store.handlers.leave(owner=self._owner)

    # ── the registry and this process ─────────────────────────────────────────────────────────────────────────────

    async def _register(self) -> None:
        async with self._changing:
            await self._register_now()

    async def _register_now(self) -> None:
        now = self._clock.now()
        registry = await self._store.handlers.register(
            self._own, owner=self._owner, now=now, until=now + LIFETIMES * self._heartbeat
        )
        self._refuse_renamed(registry)
        if registry.version != self.version:
            # After the registry: nobody who knows less than it says can have stored a later one.
            watermarks = await self._store.partitions.watermarks()
            self._learn(registry, watermarks)
        is_news = registry != self._registry
        self._registry = registry
        if is_news:
            self._tell_changed()

    def _learn(self, registry: Registry, watermarks: Mapping[TopicPartition, int]) -> None:
        before, self._strangers = self._strangers, {}
        for name, registered in registry.handlers.items():
            for trigger in registered.triggers.keys() - self._own.get(name, frozenset()):
                self._strangers.setdefault(trigger.topic, {}).setdefault(trigger.event_type, []).append(name)
        self._registry = replace(registry, processes=self._registry.processes)
        found = {topic for topic in self._strangers if _adds(self._strangers[topic], before.get(topic, {}))}
        if found:
            self._learned({each: offset for each, offset in watermarks.items() if each.topic in found})

    def _refuse_renamed(self, registry: Registry) -> None:
        for old in sorted(self._own.keys() & registry.renamed.keys()):
            new = registry.renamed[old]
            raise DefinitionError(
                f"{self._service} has a handler {old}, which was renamed to {new}.",
                where=self._where,
                why="This is a version of the service from before that: what both did would be done twice.",
                fix=f"Run the new version, or say:  microflow handlers rename {new} {old} --service {self._service}",
            )

    # ── what nobody has any more ──────────────────────────────────────────────────────────────────────────────────

    def _living(self, registry: Registry) -> dict[str, set[Trigger]]:
        """The handlers that this process has or another that lives, each with its triggers."""
        living = {name: set(triggers) for name, triggers in self._own.items()}
        for owner, handlers in registry.processes.items():
            for name, triggers in handlers.items() if owner != self._owner else ():
                living.setdefault(name, set()).update(triggers)
        return living

    async def _retire_gone(self) -> None:
        before = self._registry
        living = self._living(before)
        gone = _gone(before, living)
        if gone and (forgotten := await self._store.handlers.forget(gone, now=self._clock.now())):
            self._tell_retired(forgotten, before)
            await self._register()
        nobodys = gone.keys() - living
        waiting = await self._store.parking.counts() if nobodys else {}
        for name in sorted(nobodys & waiting.keys() - self._told):
            self._told.add(name)
            logger.warning("%s", gone_error(self._service, name, waiting[name], known=self._own, where=None))

    def _tell_retired(self, forgotten: Mapping[str, Collection[Trigger]], before: Registry) -> None:
        for name, triggers in sorted(forgotten.items()):
            if before.handlers[name].triggers.keys() == set(triggers):
                logger.info("%s: the handler %s is gone, and nothing waits for it: it is retired", self._service, name)
                continue
            told = ", ".join(sorted(trigger.in_words for trigger in triggers))
            logger.info(
                "%s: nothing triggers the handler %s by %s any more: that is retired", self._service, name, told
            )


def gone_error(
    service: str, handler: str, waiting: int, *, known: Collection[str], where: str | None
) -> DefinitionError:
    """Events wait for a handler that no process has: what may have been meant, and what to type."""
    near = nearest(handler, known)
    events = "1 event waits" if waiting == 1 else f"{waiting} events wait"
    new = near or "NEW"
    return DefinitionError(
        f"{events} for the handler {handler} of {service}, which no process has any more.",
        where=where,
        why=f"Was it renamed{f' to {near}' if near else ''}, or removed?",
        fix=f"microflow handlers rename {handler} {new} --service {service}\n"
        f"microflow handlers retire {handler} --service {service}",
    )


def _gone(registry: Registry, living: Mapping[str, Collection[Trigger]]) -> dict[str, Collection[Trigger]]:
    """What is registered and nobody has: handlers with their triggers, or triggers of a handler that has others."""
    gone = {name: registered.triggers.keys() - living.get(name, ()) for name, registered in registry.handlers.items()}
    return {name: triggers for name, triggers in gone.items() if triggers}


def _adds(now: Mapping[str, Collection[str]], before: Mapping[str, Collection[str]]) -> bool:
    return any(set(names) - set(before.get(event_type, ())) for event_type, names in now.items())
