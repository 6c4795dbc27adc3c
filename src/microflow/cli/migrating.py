"""Migrating: databases brought to the version of this microflow and of their services, or shown as they are."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from microflow.cli.console_lines import in_words
from microflow.cli.failures import FAILED
from microflow.cli.look import Look
from microflow.cli.paths import database_in_words, shortened
from microflow.cli.report_lines import instant_text, json_line
from microflow.cli.screen import Screen
from microflow.cli.serving import Served, load, set_up
from microflow.clocks import SystemClock
from microflow.connect import dialect_of, look_at_database, own_migration, own_tables
from microflow.errors import SettingsError
from microflow.ports import DatabaseState
from microflow.reaching import Reaching
from microflow.settings import MEMORY, Settings, read_settings
from microflow.tables import read_migrations

Flags = Mapping[str, str | None]

PUT_BACK = "put it back as it was, and the change into a new file with the next number"


def migrate_databases(targets: Sequence[str], *, flags: Flags, look: Look) -> int:
    """Run what has not been run; return the exit code."""
    settings, screen = _settings(flags, look)
    served = load(targets, settings)
    # What starts are told not to do is what this is for.
    asyncio.run(_migrate_all(served, replace(settings, migrate="auto"), screen))
    return 0


async def _migrate_all(served: Sequence[Served], settings: Settings, screen: Screen) -> None:
    reaching = Reaching(settings, clock=SystemClock())
    for each in served:
        name = each.definition.name
        url = _url(settings, name)
        migrations = read_migrations(each.definition.tables, dialect=dialect_of(url))
        before = await reaching.state(name)
        store = await reaching.store(name)
        try:
            ran = await store.migrate(migrations)
        finally:
            await store.close()
        if screen.json:
            fields = {"message": "migrated", "service": name, "database": database_in_words(url)}
            screen.line(json_line({**fields, "ours": before.pending, "own": ran, "version": before.known}))
        elif not screen.quiet:
            done = ", ".join([*before.pending, *ran]) or "nothing to do"
            screen.line(f"{name}: {database_in_words(url)} · {done}")


def print_sql(targets: Sequence[str], *, dialect: str | None, after: int, flags: Flags, look: Look) -> int:
    """Print the SQL of our tables, and of those of services; return the exit code."""
    settings, screen = _settings(flags, look)
    served = load(targets, settings)
    spoken = dialect or dialect_of(_url(settings, served[0].definition.name) if served else settings.database or "")
    screen.line(f"-- microflow's own tables\n\n{own_tables(spoken, after=after)}".rstrip())
    for each in served:
        for migration in read_migrations(each.definition.tables, dialect=spoken):
            sql = own_migration(spoken, each.definition.name, migration)
            screen.line(f"\n-- {each.definition.name}: {migration.name}\n\n{sql.rstrip()}")
    return 0


def show_status(targets: Sequence[str], *, flags: Flags, look: Look) -> int:
    """Show the state of databases; return the exit code: 1 if something is to be run, or a start would refuse one."""
    settings, screen = _settings(flags, look)
    wrong = False
    for each in load(targets, settings):
        name = each.definition.name
        url = _url(settings, name)
        state = asyncio.run(look_at_database(settings, service=name))
        tables = compare(each.definition.tables, state, url)
        wrong = wrong or tables.is_wrong
        if screen.json:
            screen.line(json_line(_fields(name, database_in_words(url), state, tables)))
            continue
        screen.line(f"{name}: {state_in_words(state, url, now=datetime.now(UTC))}")
        if state.is_newer:
            screen.line(f"  {newer_in_words(state)}     pip install --upgrade microworkflow")
        if tables.to_run:
            screen.line(f"  to be run: {', '.join(tables.to_run)}     microflow db migrate {each.target.text}")
        for file in tables.changed:
            screen.line(shortened(f"  {file} has changed since it was run     {PUT_BACK}"))
    return FAILED if wrong else 0


@dataclass(frozen=True, slots=True)
class Tables:
    """What of a service's tables a database does not have: migrations by their names, ours too, and files that have
    changed since they were run. Of a database that `is_newer` nobody can tell."""

    to_run: Sequence[str]
    changed: Sequence[str]
    is_newer: bool

    @property
    def is_wrong(self) -> bool:
        return bool(self.to_run or self.changed or self.is_newer)


def compare(tables: Path | None, state: DatabaseState, url: str) -> Tables:
    """A service's own tables, and ours, as they should be and as they are. Raises DefinitionError."""
    if state.is_newer:
        return Tables((), (), is_newer=True)
    own = read_migrations(tables, dialect=dialect_of(url))
    to_run = [*state.pending, *(each.name for each in own if each.name not in state.applied)]
    changed = [each.where for each in own if state.applied.get(each.name, each.checksum) != each.checksum]
    return Tables(to_run, changed, is_newer=False)


def state_in_words(state: DatabaseState, url: str, *, now: datetime) -> str:
    """A database in one line."""
    place = database_in_words(url).removeprefix("SQLite ")
    if state.version == 0:
        return f"{state.product} · {place} · no tables yet"
    if state.is_newer:
        return f"{state.product} · {place} · tables {state.version}/{state.known}"
    oldest = f", the oldest for {in_words(now - state.outbox_oldest)}" if state.outbox_oldest else ""
    return " · ".join(
        [
            state.product,
            place,
            f"tables {state.version}/{state.known}",
            f"outbox {state.outbox} pending{oldest}",
            f"inbox {state.inbox:,} claims",
            f"{state.parked} parked",
            f"{state.dead_letters} dead letters",
        ]
    )


def newer_in_words(state: DatabaseState) -> str:
    """What is wrong with a database that a start refuses because it does not know the tables."""
    return (
        f"the database was migrated by a newer microflow: its tables need one that knows version {state.needs}, and "
        f"this one knows {state.known}"
    )


def _fields(service: str, database: str, state: DatabaseState, tables: Tables) -> dict[str, object]:
    return {
        "service": service,
        "database": database,
        "product": state.product,
        "version": state.version,
        "known": state.known,
        "needs": state.needs,
        "to_run": tables.to_run,
        "changed": tables.changed,
        "log": state.cluster_id,
        "outbox": state.outbox,
        "outbox_oldest": instant_text(state.outbox_oldest) if state.outbox_oldest else None,
        "inbox": state.inbox,
        "parked": state.parked,
        "dead_letters": state.dead_letters,
    }


def _settings(flags: Flags, look: Look) -> tuple[Settings, Screen]:
    settings = read_settings({**flags, "log_level": look.log_level})
    screen = Screen(look, log_format="console")
    set_up(screen, settings)
    return settings, screen


def _url(settings: Settings, service: str) -> str:
    url = settings.database_of(service)
    if url == MEMORY:
        raise SettingsError(f"The database of {service} is in memory, and gone with its process.")
    return url
