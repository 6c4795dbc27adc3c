"""Who owns which partition, and how far each has been committed."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from microflow.ports import Beginning, Owner, Ownership, TopicPartition
from microflow.ports.database import NOTHING
from microflow.stores.postgres.errors import translated
from microflow.stores.postgres.locks import PARTITION
from microflow.stores.postgres.names import PARTITIONS as SQL
from microflow.stores.postgres.names import Names
from microflow.stores.postgres.session import Row, Session
from microflow.stores.postgres.sessions import Sessions
from microflow.stores.postgres.silence import begin_alone


class PostgresPartitions:
    """`microflow.ports.Partitions`."""

    def __init__(self, sessions: Sessions, names: Names) -> None:
        self._sessions = sessions
        self._names = names

    async def take(
        self,
        partitions: Collection[TopicPartition],
        *,
        owner: str,
        unchanged: Mapping[TopicPartition, int] = NOTHING,
    ) -> Mapping[TopicPartition, Ownership]:
        numbers = await self._names.partitions({*partitions, *unchanged})
        wanted = {numbers[partition]: partition for partition in partitions}
        known = {numbers[partition]: epoch for partition, epoch in unchanged.items()}
        if not wanted:
            return {}
        async with self._sessions.session() as session:
            with translated():
                # Waits for the transactions under the old epochs, and then sees what they have committed.
                await begin_alone(session, PARTITION, wanted.keys() | known.keys())
                changed = known and await lost(session, known)
                rows = [] if changed else await session.fetch(SQL["take"], list(wanted), owner)
                await session.script("commit")
        return {wanted[row["id"]]: _ownership(row) for row in rows}

    async def owners(self) -> Mapping[TopicPartition, Owner]:
        rows = await self._sessions.fetch(SQL["owners"], self._names.service)
        return {TopicPartition(row["topic"], row["number"]): Owner(row["epoch"], row["owner"]) for row in rows}

    async def release(
        self, epochs: Mapping[TopicPartition, int], *, careful_until: Mapping[TopicPartition, int]
    ) -> None:
        numbers = await self._names.partitions(epochs)
        offsets = [careful_until.get(partition) for partition in epochs]
        await self._sessions.fetch(SQL["release"], [numbers[each] for each in epochs], list(epochs.values()), offsets)

    async def watermarks(self) -> Mapping[TopicPartition, int]:
        rows = await self._sessions.fetch(SQL["watermarks"], self._names.service)
        return {TopicPartition(row["topic"], row["number"]): row["watermark"] for row in rows}

    async def incarnations(self) -> Mapping[TopicPartition, str]:
        rows = await self._sessions.fetch(SQL["incarnations"], self._names.service)
        return {TopicPartition(row["topic"], row["number"]): row["incarnation"] for row in rows}


def _ownership(row: Row) -> Ownership:
    careful_until: int | None = row["careful_until"]
    clean = row["released"] and careful_until is None
    return Ownership(row["epoch"], row["watermark"], clean, careful_until, row["incarnation"])


async def begin(session: Session, names: Names, beginnings: Mapping[TopicPartition, Beginning]) -> bool:
    """Set watermarks, back if need be; return whether a handler is read from an earlier offset now than before."""
    numbers = await names.partitions(beginnings)
    offsets = [beginning.offset for beginning in beginnings.values()]
    incarnations = [beginning.incarnation for beginning in beginnings.values()]
    await session.fetch(SQL["begin"], [numbers[each] for each in beginnings], offsets, incarnations)
    topics, parts = [each.topic for each in beginnings], [each.partition for each in beginnings]
    return bool(await session.fetch(SQL["read from further on"], names.service, topics, parts, offsets))


def fence_query(epochs: Mapping[int, int]) -> str:
    """What finds a row for each epoch that holds, by the partitions' numbers."""
    pairs = ",".join(f"({number},{epoch})" for number, epoch in epochs.items())
    return f"select 1 from microflow.partitions where (id, epoch) in ({pairs})"


async def lost(session: Session, epochs: Mapping[int, int]) -> Collection[int]:
    """The numbers of the partitions whose epoch is over."""
    current = {row["id"]: row["epoch"] for row in await session.fetch(SQL["epochs"], list(epochs))}
    return [number for number, epoch in epochs.items() if current.get(number) != epoch]
