"""Our own tables: made by numbered migrations, each run once, whichever process comes first."""

from __future__ import annotations

from pathlib import Path

from microflow.embedded.database import Database
from microflow.errors import IdentityError, StoreUnavailable
from microflow.stores.sqlite.scripts import split

FOLDER = Path(__file__).with_name("migrations")
CREATE = "create table if not exists microflow_schema (version integer primary key, name text not null)"


def migrations() -> dict[int, Path]:
    """The files of the folder by their numbers, in order."""
    return {int(path.name.split("_")[0]): path for path in sorted(FOLDER.glob("*.sql"))}


def script(*, after: int = 0) -> str:
    """The SQL that brings a file from version `after` to this one, for those who run their migrations themselves.

    Running it is all there is to do: it records itself, and `prepare` finds nothing left.
    """
    steps = [f"{CREATE};"] if after == 0 else []
    for number, path in migrations().items():
        if number > after:
            record = f"insert into microflow_schema values ({number}, '{path.stem}');"
            steps.append(f"{path.read_text(encoding='utf-8').rstrip()}\n\n{record}")
    return "\n\n".join(["begin immediate;", *steps, "commit;"]) + "\n" if steps else ""


async def prepare(database: Database, *, migrate: bool = True) -> None:
    """Make the tables as this version knows them; with `migrate=False` only see that they are.

    Raises IdentityError for a file of a newer version, StoreUnavailable where something is to be made and must not be.
    """
    known = migrations()
    version = _version(database)
    if version == max(known):
        return
    if not migrate and version < max(known):
        left = [path.stem for number, path in known.items() if number > version]
        raise StoreUnavailable(
            f"Migrations are to be run in {database.path}: {', '.join(left)}.",
            why="This start leaves tables alone (migrate = never).",
            fix="microflow db migrate TARGET",
        )
    async with database.writing() as connection:
        connection.execute(CREATE)
        version = int(connection.execute("select coalesce(max(version), 0) from microflow_schema").fetchone()[0])
        if version > max(known):
            raise IdentityError(
                f"{database.path} was migrated by a newer microflow.",
                why=f"Its tables have version {version}; this microflow knows versions up to {max(known)}.",
                fix="pip install --upgrade microworkflow",
            )
        for number, path in known.items():
            if number > version:
                for _, statement in split(path.read_text(encoding="utf-8")):
                    connection.execute(statement)
                connection.execute("insert into microflow_schema values (?, ?)", (number, path.stem))


def _version(database: Database) -> int:
    if not database.read("select 1 from sqlite_master where name = 'microflow_schema'"):
        return 0
    return int(database.read("select coalesce(max(version), 0) from microflow_schema")[0][0])
