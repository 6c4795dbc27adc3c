"""Switching: services begin to use all the partitions of a topic, each in its own database."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

from microflow.cli.look import Look
from microflow.cli.paths import database_in_words
from microflow.cli.report_lines import json_line
from microflow.cli.screen import Screen
from microflow.cli.service_databases import NOBODY, known_services
from microflow.cli.serving import load, set_up
from microflow.clocks import SystemClock
from microflow.errors import MicroflowError, TargetError
from microflow.ports import Transport
from microflow.reaching import Reaching
from microflow.settings import Settings, read_settings
from microflow.topic_switch import Switched, switch_topic


def switch(topic: str, targets: Sequence[str], *, flags: Mapping[str, str | None], force: bool, look: Look) -> int:
    """Use all partitions of a topic from now on; return the exit code."""
    settings = read_settings({**flags, "log_level": look.log_level})
    screen = Screen(look, log_format="console")
    set_up(screen, settings)
    services = _services(targets, settings)
    asyncio.run(_switch_all(topic, services, settings, screen, force=force))
    return 0


async def _switch_all(topic: str, services: Sequence[str], settings: Settings, screen: Screen, *, force: bool) -> None:
    reaching = Reaching(settings, clock=SystemClock())
    transport = await reaching.log()
    try:
        for service in services:
            switched = await _switch_one(topic, service, reaching, transport, force=force)
            _tell(topic, settings.database_of(service), switched, screen)
    finally:
        await transport.close()


async def _switch_one(topic: str, service: str, reaching: Reaching, transport: Transport, *, force: bool) -> Switched:
    store = await reaching.store(service)
    try:
        return await switch_topic(topic, outbox=store.outbox, transport=transport, force=force)
    except MicroflowError as error:
        raise type(error)(f"{service}: {error.what}", where=error.where, why=error.why, fix=error.fix) from error
    finally:
        await store.close()


def _services(targets: Sequence[str], settings: Settings) -> list[str]:
    """One service for each database that is meant: those of targets, or all that are known here."""
    if targets:
        names = [served.definition.name for served in load(targets, settings)]
    elif settings.database is not None:
        names = [NOBODY, *settings.databases]
    else:
        names = [*known_services(settings)]
    if not names:
        raise TargetError(
            "In whose database?",
            why=f"No service has one here: they are looked for in {settings.folder}.",
            fix="microflow topics switch TOPIC payments.py     or --database URL",
        )
    by_database = {settings.database_of(name): name for name in reversed(names)}
    return [name for name in names if by_database[settings.database_of(name)] == name]


def _tell(topic: str, url: str, switched: Switched, screen: Screen) -> None:
    place = database_in_words(url)
    if screen.json:
        fields = {"message": "switched", "topic": topic, "database": place}
        screen.line(json_line({**fields, "before": switched.before, "after": switched.after}))
    elif switched.before == switched.after:
        screen.line(f"{place}: all {switched.after} partitions of {topic} are used already")
    else:
        screen.line(f"{place}: {switched.before} → {switched.after} partitions of {topic} are used from now on")
