"""Who owns which partition, and how far each has been committed."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Collection, Mapping

from microflow.embedded.database import Database
from microflow.errors import Fenced
from microflow.ports import Beginning, Owner, Ownership, TopicPartition
from microflow.ports.database import NOTHING
from microflow.stores.sqlite import suspects
from microflow.stores.sqlite.names import PARTITIONS as SQL
from microflow.stores.sqlite.names import Names, NamesInTransaction


class SqlitePartitions:
    """`microflow.ports.Partitions`."""

    def __init__(self, database: Database, names: Names) -> None:
        self._database = database
        self._names = names

    async def take(
        self,
        partitions: Collection[TopicPartition],
        *,
        owner: str,
        unchanged: Mapping[TopicPartition, int] = NOTHING,
    ) -> Mapping[TopicPartition, Ownership]:
        async with self._database.writing() as connection:
            for partition, epoch in unchanged.items():
                found = connection.execute(SQL["epoch"], (self._names.service, *partition)).fetchone()
                if (found[0] if found else 0) != epoch:
                    return {}
            return {partition: self._take(connection, partition, owner) for partition in partitions}

    async def owners(self) -> Mapping[TopicPartition, Owner]:
        rows = self._database.read(SQL["owners"], (self._names.service,))
        return {TopicPartition(topic, number): Owner(epoch, owner) for topic, number, epoch, owner in rows}

    async def release(
        self, epochs: Mapping[TopicPartition, int], *, careful_until: Mapping[TopicPartition, int]
    ) -> None:
        async with self._database.writing() as connection:
            for partition, epoch in epochs.items():
                args = (careful_until.get(partition), self._names.service, *partition, epoch)
                connection.execute(SQL["release"], args)

    async def watermarks(self) -> Mapping[TopicPartition, int]:
        rows = self._database.read(SQL["watermarks"], (self._names.service,))
        return {TopicPartition(topic, number): watermark for topic, number, watermark in rows}

    async def incarnations(self) -> Mapping[TopicPartition, str]:
        rows = self._database.read(SQL["incarnations"], (self._names.service,))
        return {TopicPartition(topic, number): incarnation for topic, number, incarnation in rows}

    def _take(self, connection: sqlite3.Connection, partition: TopicPartition, owner: str) -> Ownership:
        args = (self._names.service, *partition, owner)
        taken = connection.execute(SQL["take"], args).fetchall()[0]
        number, epoch, watermark, released, careful_until, incarnation = taken
        suspects.count_crashes(connection, number, released=bool(released))
        return Ownership(epoch, watermark, bool(released) and careful_until is None, careful_until, incarnation)


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


def begin(
    connection: sqlite3.Connection,
    names: NamesInTransaction,
    service: str,
    beginnings: Mapping[TopicPartition, Beginning],
) -> bool:
    """Set watermarks, back if need be; return whether a handler is read from an earlier offset now than before."""
    earlier = 0
    for partition, beginning in beginnings.items():
        connection.execute(SQL["begin"], (*beginning, names.partition(partition)))
        topic, number = partition
        args = (service, topic, str(number), beginning.offset)
        earlier += connection.execute(SQL["read from further on"], args).rowcount
    return earlier > 0
