"""Handlers and partitions by small numbers, so that a claim's row need not repeat their names."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from microflow.embedded.statements import statements
from microflow.ports import TopicPartition

HANDLERS = statements(Path(__file__).with_name("handlers.sql"))
PARTITIONS = statements(Path(__file__).with_name("partitions.sql"))


class Names:
    """The numbers of one service's handlers and partitions that are known to be committed; they never change."""

    def __init__(self, service: str) -> None:
        self.service = service
        self.handlers: dict[str, int] = {}
        self.partitions: dict[TopicPartition, int] = {}

    def find_handler(self, connection: sqlite3.Connection, name: str) -> int | None:
        """The number of a handler that has one; for a connection that only reads what is committed."""
        if (number := self.handlers.get(name)) is None:
            number = _find(connection, HANDLERS["find"], (self.service, name))
            if number is not None:
                self.handlers[name] = number
        return number

    def find_partition(self, connection: sqlite3.Connection, partition: TopicPartition) -> int | None:
        """The number of a partition that has one; for a connection that only reads what is committed."""
        if (number := self.partitions.get(partition)) is None:
            number = _find(connection, PARTITIONS["find"], (self.service, *partition))
            if number is not None:
                self.partitions[partition] = number
        return number


class NamesInTransaction:
    """Finds and makes numbers inside a transaction. New ones are kept apart until it is committed: it may not be."""

    def __init__(self, names: Names, connection: sqlite3.Connection) -> None:
        self.service = names.service
        self._committed = names
        self._connection = connection
        self._handlers: dict[str, int] = {}
        self._partitions: dict[TopicPartition, int] = {}

    def handler(self, name: str) -> int:
        number = self._committed.handlers.get(name) or self._handlers.get(name)
        if number is None:
            args = (self.service, name)
            number = _find(self._connection, HANDLERS["find"], args)
            self._handlers[name] = number = number or _intern(self._connection, HANDLERS["intern"], args)
        return number

    def partition(self, partition: TopicPartition) -> int:
        number = self._committed.partitions.get(partition) or self._partitions.get(partition)
        if number is None:
            args = (self.service, *partition)
            number = _find(self._connection, PARTITIONS["find"], args)
            self._partitions[partition] = number = number or _intern(self._connection, PARTITIONS["intern"], args)
        return number

    def committed(self) -> None:
        """Everybody may use the new numbers now."""
        self._committed.handlers.update(self._handlers)
        self._committed.partitions.update(self._partitions)


def _find(connection: sqlite3.Connection, sql: str, args: tuple[str | int, ...]) -> int | None:
    row = connection.execute(sql, args).fetchone()
    return None if row is None else int(row[0])


def _intern(connection: sqlite3.Connection, sql: str, args: tuple[str | int, ...]) -> int:
    return int(connection.execute(sql, args).fetchall()[0][0])
