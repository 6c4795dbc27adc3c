"""Our own tables: made by numbered migrations, each run once, whichever process comes first.

A migration only adds, so that the processes of the version before go on while a new one is rolled out. One that must
break them says with `-- needs: N` which version's code it takes at least; older code refuses such a database.

That is asked when a service or a relay starts. Who appends to the outbox asks nothing, ever: its role may insert there
and read nowhere. So a migration after which older rows would do harm keeps them out itself, by a constraint on the
outbox that is called `needs_newer_microflow`, such as one on a new column whose default it refuses.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import asyncpg

from microflow.errors import IdentityError, StoreError, StoreUnavailable
from microflow.stores.postgres.connecting import database_of, not_permitted
from microflow.stores.postgres.errors import translated
from microflow.stores.postgres.locks import ALONE, SCHEMA, lock
from microflow.stores.postgres.session import Address, Session

FOLDER = Path(__file__).with_name("migrations")
SCHEMA_EXISTS = "select to_regnamespace('microflow') is not null"
RECORDED = "select to_regclass('microflow.schema_versions') is not null"
VERSIONS = "select version, needs from microflow.schema_versions order by version"
CREATE_SCHEMA = "create schema microflow;"
CREATE_RECORD = """create table microflow.schema_versions (
    version integer primary key,
    name text not null,
    needs integer not null -- the least version that the code must know
);"""
BEGIN = f"""begin;
set local statement_timeout = 0;
set local lock_timeout = 0;
{lock(ALONE, SCHEMA)};
set local lock_timeout = '10s'"""
"""Others' migrations are waited for as long as they take, and a statement of one may take its time too."""


@dataclass(frozen=True, slots=True)
class OwnMigration:
    """One numbered file. `needs`: the least number that code must know to work with the tables after it."""

    number: int
    name: str
    sql: str
    needs: int

    @property
    def script(self) -> str:
        """All that makes the step, its record included."""
        record = f"insert into microflow.schema_versions values ({self.number}, '{self.name}', {self.needs});"
        return f"{self.sql.rstrip()}\n\n{record}\n"


def own_migrations() -> list[OwnMigration]:
    """The files of the folder, in order."""
    return [_read(path) for path in sorted(FOLDER.glob("*.sql"))]


def script(*, after: int = 0) -> str:
    """The SQL that brings a database from version `after` to this one, for those who run their migrations themselves.

    Running it is all there is to do: it records itself, and `prepare` finds nothing left.
    """
    steps = [] if after else [CREATE_SCHEMA, CREATE_RECORD]
    steps += [each.script.rstrip() for each in own_migrations() if each.number > after]
    return "\n\n".join(["begin;", *steps, "commit;"]) + "\n" if steps else ""


async def prepare(address: Address, *, migrate: bool = True) -> None:
    """Make our tables as this version knows them; with `migrate=False` only see that they are.

    Raises IdentityError for a database of a newer version that this one cannot use, StoreUnavailable for one that we
    may not use or make, or where something is to be made and must not be, and StoreError.
    """
    session = await Session.open(address)
    try:
        with translated():
            left = pending(await versions(session), url=address.url)
            if left and not migrate:
                raise StoreUnavailable(
                    f"Migrations are to be run: {', '.join(each.name for each in left)}.",
                    why="This start leaves tables alone (migrate = never).",
                    fix="microflow db migrate TARGET",
                )
            if left:
                await _migrate(session, url=address.url)
    except StoreError as error:
        if isinstance(error.__cause__, asyncpg.InsufficientPrivilegeError):
            raise not_permitted(address.url, error.__cause__) from error
        raise
    finally:
        await session.close()


async def versions(session: Session) -> Mapping[int, int]:
    """The migrations that a database has: what each needs, by its number."""
    if not (await session.fetch(RECORDED))[0][0]:
        return {}
    return dict(await session.fetch(VERSIONS))


def pending(there: Mapping[int, int], *, url: str) -> list[OwnMigration]:
    """What is still to be run where these are there. Raises IdentityError if this version cannot use what is there."""
    migrations = own_migrations()
    needed, known = max(there.values(), default=0), max(each.number for each in migrations)
    if needed > known:
        raise IdentityError(
            f"{database_of(url)} was migrated by a newer microflow.",
            why=f"Its tables need a microflow that knows version {needed}; this one knows {known}.",
            fix="pip install --upgrade microworkflow",
        )
    return [each for each in migrations if each.number not in there]


async def _migrate(session: Session, *, url: str) -> None:
    await session.script(BEGIN)
    # The schema by itself, and only if it is missing: a role may be allowed to use it, and not to make one.
    if not (await session.fetch(SCHEMA_EXISTS))[0][0]:
        await session.script(CREATE_SCHEMA)
    if not (await session.fetch(RECORDED))[0][0]:
        await session.script(CREATE_RECORD)
    for migration in pending(await versions(session), url=url):  # another process may have been first
        await session.script(migration.script)
    await session.script("commit")


_NEEDS = re.compile(r"^-- needs: (\d+)$", re.MULTILINE)


def _read(path: Path) -> OwnMigration:
    sql = path.read_text(encoding="utf-8")
    needs = _NEEDS.search(sql)
    return OwnMigration(int(path.name.split("_")[0]), path.stem, sql, needs=int(needs[1]) if needs else 1)
