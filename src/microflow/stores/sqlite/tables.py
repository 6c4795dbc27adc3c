"""Our own tables: made by numbered migrations, each run once, whichever process comes first."""

from __future__ import annotations

from pathlib import Path

from microflow.embedded.database import Database
from microflow.errors import IdentityError
from microflow.stores.sqlite.scripts import split

FOLDER = Path(__file__).with_name("migrations")
CREATE = "create table if not exists microflow_schema (version integer primary key, name text not null)"


def migrations() -> dict[int, Path]:
    """The files of the folder by their numbers, in order."""
    return {int(path.name.split("_")[0]): path for path in sorted(FOLDER.glob("*.sql"))}


async def prepare(database: Database) -> None:
    """Make the tables as this version knows them. Raises IdentityError for a file of a newer version."""
    known = migrations()
    if _version(database) == max(known):
        return
    async with database.writing() as connection:
        connection.execute(CREATE)
        version = int(connection.execute("select coalesce(max(version), 0) from microflow_schema").fetchone()[0])
        if version > max(known):
            raise IdentityError(
                f"{database.path} was written by a newer microflow.",
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
