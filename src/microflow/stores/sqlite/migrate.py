"""The service's own migrations: each file once, in a transaction of its own, whichever process comes first."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from microflow.embedded.database import Database
from microflow.embedded.errors import translate
from microflow.embedded.statements import statements
from microflow.errors import DefinitionError, StoreUnavailable
from microflow.ports import Migration
from microflow.stores.sqlite.columns import microseconds
from microflow.stores.sqlite.scripts import split

SQL = statements(Path(__file__).with_name("database.sql"))


async def migrate(database: Database, service: str, migrations: Sequence[Migration], *, now: datetime) -> Sequence[str]:
    """Run those that have not been run, in order, and return their names."""
    applied = dict(database.read(SQL["applied migrations"], (service,)))
    if all(applied.get(migration.name) == migration.checksum for migration in migrations):
        return []
    ran = []
    for migration in migrations:
        async with database.writing() as connection:
            # Asked again under the write lock: another process may have run it while this one waited.
            applied = dict(connection.execute(SQL["applied migrations"], (service,)))
            if migration.name in applied:
                _check_unchanged(migration, applied[migration.name])
                continue
            _run(connection, migration)
            row = (service, migration.name, migration.checksum, microseconds(now))
            connection.execute(SQL["remember migration"], row)
            ran.append(migration.name)
    return ran


def _run(connection: sqlite3.Connection, migration: Migration) -> None:
    for line, statement in split(migration.sql):
        where = f"{migration.where}:{line}"
        _refuse_what_is_ours(statement, where=where)
        try:
            connection.execute(statement)
        except (sqlite3.Error, sqlite3.Warning, ValueError) as cause:
            if isinstance(cause, sqlite3.Error) and isinstance(error := translate(cause), StoreUnavailable):
                raise error from cause
            raise DefinitionError(
                f"The database refuses this statement: {cause}.",
                where=where,
                why="Nothing of this file has been run.",
            ) from cause


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
    values = f"'{service}', '{name}', '{migration.checksum}', cast(strftime('%s', 'now') as integer) * 1000000"
    record = f"-- first, so that a second run ends here\ninsert into microflow_migrations values ({values});"
    return "\n\n".join(["begin immediate;", record, sql, "commit;"]) + "\n"


_QUOTED_OR_COMMENT = re.compile(r"'(?:[^']|'')*'|--[^\n]*|/\*.*?\*/", re.DOTALL)
_OURS = re.compile(r"\bmicroflow_\w*", re.IGNORECASE)
_TRANSACTION = re.compile(r"\s*(begin|commit|end|rollback|savepoint|release)\b", re.IGNORECASE)


def _refuse_what_is_ours(statement: str, *, where: str) -> None:
    bare = _QUOTED_OR_COMMENT.sub(" ", statement)
    if match := _OURS.search(bare):
        raise DefinitionError(
            f"A migration touches {match.group()}.",
            where=where,
            why="Tables whose names begin with microflow_ are microflow's own.",
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
