"""A database and a log that do not belong together: which file is which, and how to begin anew in development.

The runtime knows them by their ids; a person knows the files.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from microflow.addresses import masked
from microflow.cli.paths import shortened
from microflow.connect import LOCAL, SQLITE
from microflow.errors import IdentityError
from microflow.settings import Settings

_ID = re.compile(r"(?P<kind>log|database) (?P<id>[0-9a-f]{32})")
_THIS = re.compile(r",? and this (one )?is (the log )?[\w-]+(?=\.$)")
_QUESTIONS = {"log": "select cluster_id from microflow_log", "database": "select database_id from microflow_identity"}


def with_files(error: IdentityError, settings: Settings, service: str) -> IdentityError:
    """The error in terms of files, and of addresses where they are on a server; as it is, if it names no ids."""
    found = _ID.search(error.what)
    if found is None:
        return error
    url = settings.database_of(service)
    log, database = _file_at(settings.kafka, LOCAL), _file_at(url, SQLITE)
    here = log if found["kind"] == "log" else database
    this = here or (settings.kafka if found["kind"] == "log" else masked(url))
    folders = (settings.folder, *(each.parent for each in (log, database) if each), Path.cwd())
    file = _file_with(found["kind"], found["id"], folders)
    other = f"the {found['kind']} {file}" if file else f"another {found['kind']}"
    gone = ", which is not here any more" if here and not file else ""
    what = _THIS.sub("", error.what).replace(f"the {found[0]}", f"{other}{gone}, and this is {this}")
    flag = "--log local:" if found["kind"] == "log" else f"--database {SQLITE}"
    way_back = f"To go on as before:  {flag}{shortened(str(file))}\n" if file else ""
    # What is on a server is nobody's to delete by a line that was copied from an error.
    ways_out = _anew(log, database, settings) if log and database else settings.as_given(error.fix or "", service)
    return IdentityError(what, why=error.why, fix=f"{way_back}{ways_out}")


def _file_at(address: str, scheme: str) -> Path | None:
    return Path(address.removeprefix(scheme)) if address.startswith(scheme) else None


def _anew(log: Path, database: Path, settings: Settings) -> str:
    if {log.parent, database.parent} == {settings.folder}:
        files = [str(settings.folder)]
    else:
        files = [f"{each}*" for each in (database, log)]
    return f"To begin anew, in development (all events are lost):  rm -r {' '.join(map(shortened, files))}"


def _file_with(kind: str, identifier: str, folders: tuple[Path, ...]) -> Path | None:
    return next((file for file in _files(folders) if _identifier(kind, file) == identifier), None)


def _files(folders: tuple[Path, ...]) -> Iterator[Path]:
    for folder in dict.fromkeys(folders):
        yield from sorted(folder.glob("*.db"))


def _identifier(kind: str, file: Path) -> str | None:
    try:
        with closing(sqlite3.connect(f"{file.resolve().as_uri()}?mode=ro", uri=True)) as connection:
            row = connection.execute(_QUESTIONS[kind]).fetchone()
    except sqlite3.Error:
        return None  # some other file
    return None if row is None else str(row[0])
