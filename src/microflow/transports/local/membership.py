"""How a subscription comes by its partitions: as a member of a group, or all of them at once."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from datetime import timedelta
from typing import Protocol

from microflow.errors import TransportError
from microflow.ports import Committed, TopicPartition
from microflow.transports.local import groups
from microflow.transports.local.errors import as_transport_errors
from microflow.transports.local.format import SQL
from microflow.transports.local.log import Log
from microflow.transports.local.sessions import Sign


class Membership(Protocol):
    """Which partitions are whose. A term is the number of an assignment; it changes with every new one."""

    async def join(self) -> None:
        """Take part in the next assignment."""
        ...

    def term(self) -> int | None:
        """The term in force. None while there is none, or none that this member takes part in."""
        ...

    async def give_up(self) -> None:
        """Say that nothing is held any more, and take part in the next assignment; join anew if expelled."""
        ...

    def partitions(self) -> Mapping[TopicPartition, int]:
        """The partitions of the term in force, with their ids."""
        ...

    async def leave(self) -> None: ...

    async def commit(self, term: int, offsets: Mapping[int, int], *, metadata: str) -> None:
        """Store offsets by partition id. Raises TransportError unless the term is the last one that was handed out."""
        ...

    def committed(self, partition_ids: Collection[int]) -> Mapping[int, Committed]: ...


class GroupMember:
    """A member of a consumer group."""

    def __init__(self, log: Log, group: str, topics: Collection[str], *, session: timedelta | None) -> None:
        self._log = log
        self._group = group
        self._topics = topics
        self._session = session
        self._sign = None if session is None else Sign(log.database.path)
        self.id: int | None = None

    async def join(self) -> None:
        if self._sign is not None:
            self._sign.give()
        async with self._log.writing() as connection:
            self.id = groups.join(
                connection,
                self._group,
                self._topics,
                session=self._session,
                sign=None if self._sign is None else self._sign.name,
            )

    def term(self) -> int | None:
        standing = self._standing()
        return None if standing is None else standing[1]

    async def give_up(self) -> None:
        standing = self._standing()
        if standing is None:
            await self.join()
            return
        ready, generation = standing
        if ready or generation is not None:
            return
        async with self._log.writing() as connection:
            assert self.id is not None
            groups.give_up(connection, self._group, self.id)

    def partitions(self) -> Mapping[TopicPartition, int]:
        assert self.id is not None
        with as_transport_errors(self._log.database.path):
            return groups.assigned(self._log.database.reader, self._group, self.id)

    async def leave(self) -> None:
        if self.id is not None:
            async with self._log.writing() as connection:
                groups.remove(connection, self._group, [self.id])
            self.id = None
        if self._sign is not None:
            self._sign.withdraw()

    async def commit(self, term: int, offsets: Mapping[int, int], *, metadata: str) -> None:
        async with self._log.writing() as connection:
            if self.id is None or not groups.is_current(connection, self.id, term):
                raise TransportError(f"an offset of group {self._group} comes too late: its generation is over")
            groups.commit(connection, self._group, offsets, metadata=metadata)

    def committed(self, partition_ids: Collection[int]) -> Mapping[int, Committed]:
        with as_transport_errors(self._log.database.path):
            return groups.committed(self._log.database.reader, self._group, partition_ids)

    def _standing(self) -> tuple[bool, int | None] | None:
        if self.id is None:
            return None
        with as_transport_errors(self._log.database.path):
            try:
                return groups.generation(self._log.database.reader, self.id)
            except LookupError:
                return None


class Everything:
    """All partitions of the topics, outside all groups. A term is over when another of the topics appears."""

    def __init__(self, log: Log, topics: Collection[str]) -> None:
        self._log = log
        self._topics = json.dumps(sorted(topics))

    async def join(self) -> None:
        pass

    def term(self) -> int | None:
        with as_transport_errors(self._log.database.path):
            row = self._log.database.reader.execute(SQL["how many topics"], (self._topics,)).fetchone()
            return int(row[0])

    async def give_up(self) -> None:
        pass

    def partitions(self) -> Mapping[TopicPartition, int]:
        with as_transport_errors(self._log.database.path):
            rows = self._log.database.reader.execute(SQL["partitions of topics"], (self._topics,)).fetchall()
        return {TopicPartition(topic, partition): partition_id for topic, partition, partition_id in rows}

    async def leave(self) -> None:
        pass

    async def commit(self, term: int, offsets: Mapping[int, int], *, metadata: str) -> None:
        raise TransportError("a reader outside all groups has no offsets to commit")

    def committed(self, partition_ids: Collection[int]) -> Mapping[int, Committed]:
        return {}
