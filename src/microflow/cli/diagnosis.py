"""The diagnosis: which subjects there are to be looked at, for the services and settings that are here."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping, Sequence
from functools import partial

from microflow.cli.examining import Examined, examine
from microflow.cli.failures import FAILED
from microflow.cli.look import Look
from microflow.cli.probes.databases import look_at_database_of
from microflow.cli.probes.findings import Finding
from microflow.cli.probes.groups import look_at_group
from microflow.cli.probes.log import SharedLog, look_at_log
from microflow.cli.probes.machine import look_at_packages
from microflow.cli.probes.services import Looked, load_services
from microflow.cli.probes.topics import look_at_topics
from microflow.cli.probes.traces import look_at_instrumentation, look_at_traces
from microflow.cli.screen import Screen
from microflow.cli.serving import set_up
from microflow.cli.topic_plan import needs_of
from microflow.connect import import_drivers
from microflow.settings import Settings, read_settings


def diagnose(targets: Sequence[str], *, flags: Mapping[str, str | None], look: Look) -> int:
    """Look at everything; return the exit code: 1 if there are problems."""
    settings = read_settings({**flags, "log_level": look.log_level})
    screen = Screen(look, log_format="console")
    set_up(screen, settings)
    looked = load_services(targets, settings)
    import_drivers(settings)
    return FAILED if asyncio.run(_examine(looked, settings, screen, targets)) else 0


async def _examine(looked: Looked, settings: Settings, screen: Screen, targets: Sequence[str]) -> int:
    log = SharedLog(settings)
    try:
        return await examine(_subjects(looked, log, settings, targets), screen)
    finally:
        await log.close()


def _subjects(looked: Looked, log: SharedLog, settings: Settings, targets: Sequence[str]) -> list[Examined]:
    async def services() -> Sequence[Finding]:
        return looked.findings

    definitions = looked.definitions
    subjects = [
        Examined("python", look_at_packages),
        Examined("services", services),
        Examined("log", partial(look_at_log, log, settings)),
        Examined("topics", partial(look_at_topics, log, needs_of(definitions), settings, targets=targets)),
    ]
    for definition, target in zip(definitions, looked.targets, strict=True):
        database = partial(look_at_database_of, definition, log, settings, target=target)
        subjects.append(Examined(f"database of {definition.name}", database))
        group = partial(look_at_group, log, definition, settings, target=target)
        subjects.append(Examined(f"group {definition.name}", group))
    subjects.append(Examined("traces", partial(look_at_traces, os.environ)))
    subjects.append(Examined("instrumentation", partial(look_at_instrumentation, os.environ)))
    return subjects
