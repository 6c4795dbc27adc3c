"""The service's own migrations: each file once, in a transaction of its own, whichever process comes first."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

import asyncpg

from microflow.embedded.statements import statements
from microflow.errors import DefinitionError, StoreError
from microflow.ports import Migration
from microflow.stores.postgres import tables
from microflow.stores.postgres.errors import translate, translated
from microflow.stores.postgres.scripts import split
from microflow.stores.postgres.session import Session
from microflow.stores.postgres.sessions import Sessions

SQL = statements(Path(__file__).with_name("database.sql"))


async def migrate(sessions: Sessions, service: str, migrations: Sequence[Migration], *, now: datetime) -> Sequence[str]:
    """Run those that have not been run, in order, and return their names."""
    applied: dict[str, str] = dict(await sessions.fetch(SQL["applied migrations"], service))
    if all(applied.get(migration.name) == migration.checksum for migration in migrations):
        return []
    ran = []
    async with sessions.session() as session:
        for migration in migrations:
            with translated():
                await session.script(tables.BEGIN)
                # Asked again under the lock: another process may have run it while this one waited.
                applied = dict(await session.fetch(SQL["applied migrations"], service))
                if migration.name in applied:
                    _check_unchanged(migration, applied[migration.name])
                    await session.script("rollback")
                    continue
                await _run(session, migration)
                await session.fetch(SQL["remember migration"], service, migration.name, migration.checksum, now)
                await session.script("commit")
                ran.append(migration.name)
    return ran


async def _run(session: Session, migration: Migration) -> None:
    for line, statement in split(migration.sql):
        where = f"{migration.where}:{line}"
        _refuse_what_is_ours(statement, where=where)
        try:
            await session.script(statement)
        except (asyncpg.PostgresError, ValueError) as cause:
            error = translate(cause)
            if error.transient:
                raise _with_place(error, where) from cause
            raise DefinitionError(
                f"The database refuses this statement: {error.what}.",
                where=where,
                why="Nothing of this file has been run.",
            ) from cause


def _with_place(error: StoreError, where: str) -> StoreError:
    error.where = error.where or where
    return error


def script(service: str, migration: Migration) -> str:
    """The SQL that runs a migration and records it as a start does, for those who run migrations themselves.

    Run a second time it fails, and changes nothing. Raises DefinitionError for what a start would refuse.
    """
    for line, statement in split(migration.sql):
        _refuse_what_is_ours(statement, where=f"{migration.where}:{line}")
    sql = migration.sql.rstrip()
    if list(split(sql)) != list(split(f"{sql}\n;")):  # the last statement has no end of its own
        sql += "\n;"
    service, name = (text.replace("'", "''") for text in (service, migration.name))
    values = f"'{service}', '{name}', '{migration.checksum}', clock_timestamp()"
    record = f"-- first, so that a second run ends here\ninsert into microflow.migrations values ({values});"
    return "\n\n".join(["begin;", record, sql, "commit;"]) + "\n"


_QUOTED_OR_COMMENT = re.compile(r"'(?:[^']|'')*'|--[^\n]*|/\*.*?\*/", re.DOTALL)
_OURS = re.compile(r"\bmicroflow(_\w*|\"?\s*\.\s*\"?\w+)", re.IGNORECASE)
_TRANSACTION = re.compile(
    r"\s*(begin|start\s+transaction|commit|end|rollback|abort|savepoint|release|prepare\s+transaction)\b", re.IGNORECASE
)


def _refuse_what_is_ours(statement: str, *, where: str) -> None:
    bare = _QUOTED_OR_COMMENT.sub(" ", statement)
    if match := _OURS.search(bare):
        raise DefinitionError(
            f"A migration touches {match.group()}.",
            where=where,
            why="What lies in the schema microflow, or has a name that begins with microflow_, is microflow's own.",
            fix="Give the table another name.",
        )
    if match := _TRANSACTION.match(bare):
        raise DefinitionError(
            f"A migration says {match.group(1).upper()}.",
            where=where,
            why="Each file is a transaction already: all of it is run, or none.",
            fix="Leave the line out.",
        )


def _check_unchanged(migration: Migration, checksum: str) -> None:
    if checksum != migration.checksum:
        raise DefinitionError(
            f"The migration {migration.name} has changed since it was run.",
            where=migration.where,
            why="What was run cannot be run again, so the change would reach new databases only.",
            fix="Put the file back as it was, and the change into a new file with the next number.",
        )
