"""The handlers of services on the screen, and what is said when one is retired or renamed."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any, TypeVar

from microflow.addresses import masked
from microflow.cli.dead_letter_views import local_time
from microflow.cli.look import Look
from microflow.cli.paths import log_in_words
from microflow.cli.probes.log import is_there
from microflow.cli.report_lines import instant_text, json_line
from microflow.cli.screen import Screen
from microflow.cli.service_databases import opened, service_meant, services_meant
from microflow.cli.serving import set_up
from microflow.clocks import SystemClock
from microflow.connect import connect_transport, look_at_database
from microflow.dead_letter_copies import Copies, topic_of_copies
from microflow.errors import TargetError, TransportError
from microflow.handler_changes import CopyOf, checked, no_copy, rename_handler, retire_handler
from microflow.handlers import Trigger, is_name
from microflow.ports import Registered, Store
from microflow.settings import Settings, read_settings

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Standing:
    """A handler by its service's database: None in `registered` for one that only events that wait speak of."""

    name: str
    registered: Registered | None
    waiting: int
    processes: Sequence[str]


def list_all(target: str | None, service: str | None, *, database: str | None, look: Look) -> int:
    """Show the handlers of services; return the exit code."""
    settings = read_settings({"database": database})
    screen = Screen(look, log_format="console")
    names = services_meant(target, service, database=database, settings=settings)
    for name in names:
        standings = asyncio.run(_with_store(name, settings, _standings))
        if screen.json:
            for standing in standings:
                screen.line(json_line(_fields(name, standing)))
            continue
        if len(names) > 1:
            screen.line(screen.style(name, bold=True))
        for line in _rows(standings, verbose=screen.verbose):
            screen.line(line)
        if not standings:
            screen.line(f"{name} has registered no handlers yet: it never ran here.")
        for standing in standings:
            if standing.waiting and not standing.processes:
                screen.line(f"Nobody has {standing.name}. If it is gone for good:  {_typed('retire', name, standing)}")
    return 0


def retire_one(
    name: str, target: str | None, service: str | None, *, flags: Mapping[str, str | None], yes: bool, look: Look
) -> int:
    """Retire a handler, or with `yes=False` show what that would do; return the exit code."""
    settings = read_settings({**flags, "log_level": look.log_level})
    screen = Screen(look, log_format="console")
    set_up(screen, settings)
    owner = service_meant(target, service, database=flags["database"], settings=settings)
    uncopied = ""

    async def look_at_it(store: Store) -> int:
        await checked(store, name, now=SystemClock().now())
        return (await store.parking.counts()).get(name, 0)

    async def do_it(store: Store) -> int:
        nonlocal uncopied
        async with AsyncExitStack() as opened:
            copy_of, uncopied = await _copying(owner, settings, opened)
            return await retire_handler(store, name, now=SystemClock().now(), copy_of=copy_of)

    count = asyncio.run(_changing(owner, settings, do_it if yes else look_at_it, flags["database"]))
    if screen.json:
        fields = {"service": owner, "handler": name, "retired": yes, "dead_letters": count}
        screen.line(json_line({**fields, "uncopied": uncopied or None}))
    elif yes:
        screen.line(f"{owner} has no handler {name} any more.")
        if count:
            screen.line(f"{_dead(count, 'became')}:  microflow dead-letters list --service {owner}")
        if count and uncopied:
            screen.line(f"Nothing of it was copied to {topic_of_copies(owner)}: {uncopied}")
    else:
        fate = _dead(count, "that now waits for it would become" if count == 1 else "that now wait for it would become")
        fate = fate if count else "nothing waits for it"
        screen.line(f"{owner} would forget its handler {name}, and {fate}. Nothing was done. To do it, add  --yes")
    return 0


def rename_one(
    old: str, new: str, target: str | None, service: str | None, *, database: str | None, yes: bool, look: Look
) -> int:
    """Rename a handler, or with `yes=False` show what that would do; return the exit code."""
    if not is_name(new):
        raise TargetError(
            f"{new!r} is no name for a handler.", why="A name is 1 to 100 letters, digits, '_', '-' and '.'."
        )
    if old == new:
        raise TargetError(f"{old} and {new} are one name.")
    settings = read_settings({"database": database})
    screen = Screen(look, log_format="console")
    owner = service_meant(target, service, database=database, settings=settings)

    async def look_at_it(store: Store) -> int:
        await checked(store, old, now=SystemClock().now())
        return (await store.parking.counts()).get(old, 0)

    async def do_it(store: Store) -> int:
        return await rename_handler(store, old, new, now=SystemClock().now())

    count = asyncio.run(_changing(owner, settings, do_it if yes else look_at_it, database))
    waiting = f", and {_waiting(count)} for it" if count else ""
    if screen.json:
        screen.line(json_line({"service": owner, "handler": old, "new": new, "renamed": yes, "waiting": count}))
    elif yes:
        screen.line(f"The handler {old} of {owner} is called {new} now{waiting}.")
    else:
        screen.line(
            f"The handler {old} of {owner} would be called {new}{waiting}. Nothing was done. To do it, add  --yes"
        )
    return 0


async def _copying(service: str, settings: Settings, opened: AsyncExitStack) -> tuple[CopyOf, str]:
    """What makes copies for the topic of a service's dead letters, and if that is nothing, why."""
    log = log_in_words(settings.kafka)
    if not is_there(settings):
        return no_copy, f"there is no {log}."
    try:
        transport = await connect_transport(settings, clock=SystemClock())
        opened.push_async_callback(transport.close)
        here = await transport.topics.cluster_id()
        if (await look_at_database(settings, service=service)).cluster_id not in (None, here):
            return no_copy, f"its database belongs to another log than {log}."
        copies = Copies(service, transport, clock=SystemClock(), refused=lambda topic: False)
        await copies.look()
    except TransportError as error:
        return no_copy, error.what
    return (copies.copy_of, "") if copies.can_be_made else (no_copy, f"{log} has no such topic.")


async def _with_store(service: str, settings: Settings, step: Callable[[Store], Awaitable[T]]) -> T:
    async with opened(service, settings) as store:
        return await step(store)


async def _changing(service: str, settings: Settings, step: Callable[[Store], Awaitable[T]], database: str | None) -> T:
    """As `_with_store`; for a handler that nobody knows of, what lists those that there are."""
    try:
        return await _with_store(service, settings, step)
    except TargetError as error:
        where = f" --database {masked(database)}" if database else ""
        error.fix = error.fix or f"microflow handlers list --service {service}{where}"
        raise


async def _standings(store: Store) -> list[Standing]:
    registry = await store.handlers.registry(now=SystemClock().now())
    waiting = await store.parking.counts()
    return [
        Standing(
            name,
            registry.handlers.get(name),
            waiting.get(name, 0),
            sorted(owner for owner, handlers in registry.processes.items() if name in handlers),
        )
        for name in sorted({*registry.handlers, *filter(None, waiting)})
    ]


def _fields(service: str, standing: Standing) -> dict[str, Any]:
    registered = standing.registered
    return {
        "service": service,
        "handler": standing.name,
        "triggers": [
            {"type": trigger.event_type, "topic": trigger.topic, "since": dict(since)}
            for trigger, since in _triggers(registered).items()
        ],
        "since": None if registered is None else instant_text(registered.since),
        "waiting": standing.waiting,
        "processes": list(standing.processes),
    }


def _rows(standings: Sequence[Standing], *, verbose: bool) -> list[str]:
    table = [
        [
            standing.name,
            ", ".join(each.in_words for each in _triggers(standing.registered)) or "(nothing triggers it)",
            f"since {local_time(standing.registered.since)}" if standing.registered else "",
            _waiting(standing.waiting) if standing.waiting else "",
            _processes_in_words(standing.processes, verbose=verbose),
        ]
        for standing in standings
    ]
    widths = [max(len(row[column]) for row in table) for column in range(5)] if table else []
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True) if width).rstrip() for row in table
    ]


def _triggers(registered: Registered | None) -> Mapping[Trigger, Mapping[int, int]]:
    return {} if registered is None else registered.triggers


def _processes_in_words(processes: Sequence[str], *, verbose: bool) -> str:
    if verbose and processes:
        return ", ".join(processes)
    count = len(processes)
    return f"in {count} process{'es' if count != 1 else ''}" if processes else "in no process"


def _waiting(count: int) -> str:
    return "1 event waits" if count == 1 else f"{count} events wait"


def _dead(count: int, became: str) -> str:
    return f"1 event {became} a dead letter" if count == 1 else f"{count} events {became} dead letters"


def _typed(verb: str, service: str, standing: Standing) -> str:
    return f"microflow handlers {verb} {standing.name} --service {service}"
