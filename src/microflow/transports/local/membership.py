"""How a subscription comes by its partitions: as a member of a group, or all of them at once."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Protocol

from microflow.errors import LogGone, TransportError
from microflow.ports import Clock, Committed, TopicPartition
from microflow.transports.local import groups
from microflow.transports.local.errors import as_transport_errors
from microflow.transports.local.format import SQL
from microflow.transports.local.log import Log
from microflow.transports.local.signs import Attendance, Sign, signs_of
from microflow.trouble import Trouble

logger = logging.getLogger("microflow.transports.local")

WAIT_TO_LEAVE = timedelta(seconds=2)


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


@dataclass(frozen=True, slots=True)
class Patience:
    """How long the members of a group put up with each other."""

    session: timedelta
    heartbeat: timedelta
    rebalance: timedelta


class GroupMember:
    """A member of a consumer group. Without `patience` it never expires, and expels nobody."""

    def __init__(
        self, log: Log, group: str, topics: Collection[str], *, clock: Clock, patience: Patience | None
    ) -> None:
        self.group = group
        self.id: int | None = None
        self._log = log
        self._topics = topics
        self._clock = clock
        self._patience = patience
        self._sign = Sign(signs_of(log.database.path))
        self._heart: asyncio.Task[None] | None = None

    async def join(self) -> None:
        patience = self._patience
        if patience is not None:
            with as_transport_errors(self._log.database.path):
                self._sign.give(self._clock.now())
        session = None if patience is None else patience.session
        async with self._log.writing() as connection:
            self.id = groups.join(connection, self.group, self._topics, session=session, sign=self._sign.name or None)
        if patience is not None and self._heart is None:
            self._heart = asyncio.get_running_loop().create_task(self._stay_alive(patience))

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
            if self.id is not None:  # it may have left while this waited for the lock
                groups.give_up(connection, self.group, self.id)

    def partitions(self) -> Mapping[TopicPartition, int]:
        assert self.id is not None
        with self._log.reading() as connection:
            return groups.assigned(connection, self.group, self.id)

    async def leave(self) -> None:
        if self._heart is not None:
            self._heart.cancel()
        try:
            async with self._log.writing(patience=WAIT_TO_LEAVE) as connection:
                groups.remove(connection, self.group, [] if self.id is None else [self.id])
            self._sign.withdraw()
        except LogGone:
            pass  # with it, the group
        except TransportError as error:
            logger.warning("group %s will notice by itself that a member left: %s", self.group, error)
        finally:
            self.id = None
            self._sign.let_go()

    async def commit(self, term: int, offsets: Mapping[int, int], *, metadata: str) -> None:
        async with self._log.writing() as connection:
            if self.id is None or not groups.is_current(connection, self.id, term):
                raise TransportError(f"an offset of group {self.group} comes too late: its generation is over")
            groups.commit(connection, self.group, offsets, metadata=metadata)

    def committed(self, partition_ids: Collection[int]) -> Mapping[int, Committed]:
        with self._log.reading() as connection:
            return groups.committed(connection, self.group, partition_ids)

    def _standing(self) -> tuple[bool, int | None] | None:
        if self.id is None:
            return None
        with self._log.reading() as connection:
            return groups.standing(connection, self.id)

    def _signs(self) -> Collection[str]:
        with self._log.reading() as connection:
            return groups.signs(connection)

    async def _stay_alive(self, patience: Patience) -> None:
        attendance = Attendance(
            signs_of(self._log.database.path),
            clock=self._clock,
            rebalance_timeout=patience.rebalance,
            awake_within=max(3 * patience.heartbeat, patience.session / 2),
        )
        trouble = Trouble(logger)
        while True:
            try:
                self._log.check_still_there()
                self._sign.renew(self._clock.now())
                await self._expel(attendance)
                await self._log.clean()
            except LogGone:
                return  # there is nothing to be a member of, and whoever fetches is told
            except (TransportError, OSError) as error:
                said = error.line if isinstance(error, TransportError) else str(error)
                trouble.met("heartbeats in group %s fail: %s", self.group, said)
            else:
                trouble.is_over(f"heartbeats in group {self.group} succeed again")
            await self._clock.sleep(patience.heartbeat)

    async def _expel(self, attendance: Attendance) -> None:
        attendance.tidy(self._signs)
        with self._log.reading() as connection:
            others = [each for each in groups.members(connection, self.group) if each.id != self.id]
        if absent := attendance.absent(others):
            logger.info("expelling %d silent members of group %s", len(absent), self.group)
            async with self._log.writing() as connection:
                groups.remove(connection, self.group, absent)


class Everything:
    """All partitions of the topics, outside all groups. A term is over when another one appears."""

    def __init__(self, log: Log, topics: Collection[str]) -> None:
        self._log = log
        self._topics = json.dumps(sorted(topics))

    async def join(self) -> None:
        pass

    def term(self) -> int | None:
        with self._log.reading() as connection:
            return int(connection.execute(SQL["how many partitions"], (self._topics,)).fetchone()[0])

    async def give_up(self) -> None:
        pass

    def partitions(self) -> Mapping[TopicPartition, int]:
        with self._log.reading() as connection:
            rows = connection.execute(SQL["partitions of topics"], (self._topics,)).fetchall()
        return {TopicPartition(topic, partition): partition_id for topic, partition, partition_id in rows}

    async def leave(self) -> None:
        pass

    async def commit(self, term: int, offsets: Mapping[int, int], *, metadata: str) -> None:
        raise TransportError("a reader outside all groups has no offsets to commit")

    def committed(self, partition_ids: Collection[int]) -> Mapping[int, Committed]:
        return {}
