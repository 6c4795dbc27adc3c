"""The databases of services: whether they answer, whose they are, and what waits in them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from microflow.cli.migrating import PUT_BACK, compare, newer_in_words, state_in_words
from microflow.cli.probes.findings import Finding, ok, problem, problem_of, warning
from microflow.cli.probes.log import SharedLog, is_there
from microflow.cli.probes.postgres import look_at_server
from microflow.cli.probes.sqlite import look_at_sqlite
from microflow.connect import SQLITE, look_at_database, sqlite_path
from microflow.errors import SettingsError, StoreError
from microflow.ports import DatabaseState
from microflow.service import Definition
from microflow.settings import MEMORY, Settings

LONG_IN_THE_OUTBOX = timedelta(minutes=1)


async def look_at_database_of(
    definition: Definition, log: SharedLog, settings: Settings, *, target: str
) -> Sequence[Finding]:
    """The database of one service."""
    findings = await _look(definition, log, settings, target=target)
    name = definition.name
    return [replace(each, fix=each.fix and settings.as_given(each.fix, name)) for each in findings]


async def _look(definition: Definition, log: SharedLog, settings: Settings, *, target: str) -> Sequence[Finding]:
    name, url = definition.name, settings.database_of(definition.name)
    if url == MEMORY:
        return [ok(f"{name}: database in memory")]
    findings: list[Finding] = []
    if url.startswith(SQLITE):
        findings += await asyncio.to_thread(look_at_sqlite, sqlite_path(url), workers=settings.workers)
    try:
        state = await look_at_database(settings, service=name)
    except (StoreError, SettingsError) as error:
        return [*findings, problem_of(error, of=name)]
    tables = compare(definition.tables, state, url)
    findings.append(ok(f"{name}: {state_in_words(state, url, now=datetime.now(UTC))}"))
    if tables.to_run and (settings.migrate == "never" or state.version > 0):
        how = "a start does not run them" if settings.migrate == "never" else "the next start runs them"
        tell = problem if settings.migrate == "never" else warning
        findings.append(
            tell(f"{name}: migrations to be run ({how}): {', '.join(tables.to_run)}", f"microflow db migrate {target}")
        )
    if state.is_newer:
        findings.append(problem(f"{name}: {newer_in_words(state)}", "pip install --upgrade microworkflow"))
    findings += [problem(f"{name}: {each} has changed since it was run", PUT_BACK) for each in tables.changed]
    if state.server is not None:
        findings += look_at_server(name, state.server, workers=settings.workers, now=datetime.now(UTC))
    findings += _of_outbox(name, state, target)
    findings += await _of_identity(name, state, log, settings)
    return findings


def _of_outbox(name: str, state: DatabaseState, target: str) -> Sequence[Finding]:
    if state.outbox_oldest is None or datetime.now(UTC) - state.outbox_oldest < LONG_IN_THE_OUTBOX:
        return []
    return [
        warning(
            f"{name}: {state.outbox} events wait in the outbox, one for longer than a minute: nobody relays them, or "
            "something keeps them",
            f"microflow outbox status --service {name}     or, if nothing runs:  microflow run {target}",
        )
    ]


async def _of_identity(name: str, state: DatabaseState, log: SharedLog, settings: Settings) -> Sequence[Finding]:
    if state.cluster_id is None or not is_there(settings) or (transport := await log.get_or_none()) is None:
        return []
    here = await transport.topics.cluster_id()
    if here == state.cluster_id:
        return []
    return [
        problem(
            f"{name} refuses to start: its database belongs to the log {state.cluster_id}, and this is the log {here}",
            "MICROFLOW_KAFKA=… of the log it belongs to, or MICROFLOW_DATABASE=… of a database of this log",
        )
    ]
