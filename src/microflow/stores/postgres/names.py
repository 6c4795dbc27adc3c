"""Handlers and partitions by small numbers, so that a claim's row need not repeat their names."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

from microflow.embedded.statements import statements
from microflow.ports import TopicPartition
from microflow.stores.postgres.sessions import Sessions

HANDLERS = statements(Path(__file__).with_name("handlers.sql"))
PARTITIONS = statements(Path(__file__).with_name("partitions.sql"))


class Names:
    """The numbers of one service's handlers and partitions; made outside of all transactions, they never change.

    Unless the database is another one than before: whoever loses a connection calls `forget`, because a standby that
    took over may not have the latest.
    """

    def __init__(self, service: str, sessions: Sessions) -> None:
        self.service = service
        self._sessions = sessions
        self._handlers: dict[str, int] = {}
        self._partitions: dict[TopicPartition, int] = {}

    async def handlers(self, names: Collection[str]) -> Mapping[str, int]:
        """Numbers of at least these, making those that are new. Raises StoreError."""
        while unknown := [name for name in set(names) if name not in self._handlers]:
            await self._sessions.fetch(HANDLERS["intern"], self.service, unknown)
            for row in await self._sessions.fetch(HANDLERS["find"], self.service, unknown):
                self._handlers[row["name"]] = row["id"]
        return self._handlers

    async def partitions(self, partitions: Collection[TopicPartition]) -> Mapping[TopicPartition, int]:
        """Numbers of at least these, making those that are new. Raises StoreError."""
        while unknown := [partition for partition in set(partitions) if partition not in self._partitions]:
            args = (self.service, [each.topic for each in unknown], [each.partition for each in unknown])
            await self._sessions.fetch(PARTITIONS["intern"], *args)
            for row in await self._sessions.fetch(PARTITIONS["find"], *args):
                self._partitions[TopicPartition(row["topic"], row["number"])] = row["id"]
        return self._partitions

    def forget(self) -> None:
        """Ask the database anew."""
        self._handlers = {}
        self._partitions = {}
