"""Marks of events that are alone in hand, and how many processes have ended meanwhile."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

from microflow.embedded.statements import statements
from microflow.errors import Fenced
from microflow.ports import Mark, TopicPartition
from microflow.stores.postgres.names import Names
from microflow.stores.postgres.session import Session
from microflow.stores.postgres.sessions import Sessions

SQL = statements(Path(__file__).with_name("suspects.sql"))


class PostgresSuspects:
    """`microflow.ports.Suspects`."""

    def __init__(self, sessions: Sessions, names: Names) -> None:
        self._sessions = sessions
        self._names = names

    async def mark(self, mark: Mark, *, epoch: int) -> None:
        numbers = await self._names.partitions([mark.home])
        if not await self._sessions.fetch(SQL["mark"], numbers[mark.home], epoch, mark.partition, mark.offset):
            raise Fenced([mark.home])

    async def known(self, homes: Collection[TopicPartition]) -> Mapping[Mark, int]:
        topics, partitions = [home.topic for home in homes], [home.partition for home in homes]
        rows = await self._sessions.fetch(SQL["known"], self._names.service, topics, partitions)
        return {
            Mark(TopicPartition(topic, home), number, offset): crashes for topic, home, number, offset, crashes in rows
        }


async def clear(session: Session, names: Names, marks: Collection[Mark]) -> None:
    """Forget marks, with the crashes that were counted."""
    numbers = await names.partitions({mark.home for mark in marks})
    args = ([numbers[mark.home] for mark in marks], [mark.partition for mark in marks], [mark.offset for mark in marks])
    await session.fetch(SQL["clear"], *args)
