"""Marks of events that are alone in hand, and how many processes have ended meanwhile."""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

from microflow.embedded.database import Database
from microflow.embedded.statements import statements
from microflow.errors import Fenced
from microflow.ports import Mark, TopicPartition
from microflow.stores.sqlite.names import Names, NamesInTransaction

SQL = statements(Path(__file__).with_name("suspects.sql"))


class SqliteSuspects:
    """`microflow.ports.Suspects`."""

    def __init__(self, database: Database, names: Names) -> None:
        self._database = database
        self._names = names

    async def mark(self, mark: Mark, *, epoch: int) -> None:
        # Not synced: it has to survive this process, not the machine.
        async with self._database.writing(synced=False) as connection:
            args = (mark.partition, mark.offset, self._names.service, *mark.home, epoch)
            if connection.execute(SQL["mark"], args).rowcount != 1:
                raise Fenced([mark.home])

    async def known(self, homes: Collection[TopicPartition]) -> Mapping[Mark, int]:
        known: dict[Mark, int] = {}
        with self._database.reading() as connection:
            for home in homes:
                number = self._names.find_partition(connection, home)
                rows = connection.execute(SQL["known"], (number,))
                known |= {Mark(home, partition, offset): crashes for partition, offset, crashes in rows}
        return known


def count_crashes(connection: sqlite3.Connection, partition: int, *, released: bool) -> None:
    """A partition has a new owner: what the one before had in hand is not any more, and has crashed it if it died."""
    connection.execute(SQL["count crashes"], (0 if released else 1, partition))


def clear(connection: sqlite3.Connection, names: NamesInTransaction, marks: Iterable[Mark]) -> None:
    """Forget marks, with the crashes that were counted."""
    for mark in marks:
        connection.execute(SQL["clear"], (names.partition(mark.home), mark.partition, mark.offset))
