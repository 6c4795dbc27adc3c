"""Who owns which partition, and how far each has been committed."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Collection, Mapping

from microflow.embedded.database import Database
from microflow.errors import Fenced
from microflow.ports import Ownership, TopicPartition
from microflow.stores.sqlite.names import PARTITIONS as SQL
from microflow.stores.sqlite.names import Names, NamesInTransaction


class SqlitePartitions:
    """`microflow.ports.Partitions`."""

    def __init__(self, database: Database, names: Names) -> None:
        self._database = database
        self._names = names

    async def take(self, partitions: Collection[TopicPartition], *, owner: str) -> Mapping[TopicPartition, Ownership]:
        async with self._database.writing() as connection:
            return {
                partition: Ownership(
                    *connection.execute(SQL["take"], (self._names.service, *partition, owner)).fetchall()[0]
                )
                for partition in partitions
            }

    async def watermarks(self) -> Mapping[TopicPartition, int]:
        rows = self._database.read(SQL["watermarks"], (self._names.service,))
        return {TopicPartition(topic, number): watermark for topic, number, watermark in rows}


def fence(connection: sqlite3.Connection, names: NamesInTransaction, epochs: Mapping[TopicPartition, int]) -> None:
    """Raise Fenced unless these are the epochs; the write lock keeps them so."""
    numbers = {partition: names.partition(partition) for partition in epochs}
    current = dict(connection.execute(SQL["epochs"], (json.dumps(list(numbers.values())),)))
    lost = [partition for partition, epoch in epochs.items() if current.get(numbers[partition]) != epoch]
    if lost:
        raise Fenced(lost)


def advance(
    connection: sqlite3.Connection, names: NamesInTransaction, watermarks: Mapping[TopicPartition, int]
) -> None:
    """Store watermarks; one that is further already stays."""
    connection.executemany(
        SQL["advance"], [(watermark, names.partition(partition)) for partition, watermark in watermarks.items()]
    )
