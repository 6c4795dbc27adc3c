"""Events that wait for their next attempt, in the order of their keys."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

from microflow.embedded.headers import encode_headers
from microflow.embedded.statements import statements
from microflow.ports import Blocked, ClaimKey, DeadLetter, OrderingKey, Parked, TopicPartition
from microflow.stores.postgres.columns import ORDERINGS, ORDERS, record_of, storable
from microflow.stores.postgres.locks import PARKED_KEY
from microflow.stores.postgres.names import Names
from microflow.stores.postgres.notifications import Channel
from microflow.stores.postgres.session import Row, Session
from microflow.stores.postgres.sessions import Sessions

SQL = statements(Path(__file__).with_name("parking.sql"))


class PostgresParking:
    """`microflow.ports.Parking`."""

    def __init__(self, sessions: Sessions, names: Names, news: Channel) -> None:
        self._sessions = sessions
        self._names = names
        self._news = news

    async def blocked(self, keys: Collection[OrderingKey]) -> Mapping[OrderingKey, Blocked]:
        if not keys:
            return {}
        asked = list(keys)
        topics, bytes_of = [key.topic for key in asked], [key.key for key in asked]
        rows = await self._sessions.fetch(SQL["blocked"], self._names.service, topics, bytes_of)
        return {
            asked[row["place"] - 1]: Blocked(row["all_handlers"], frozenset(row["handlers"]))
            for row in rows
            if row["all_handlers"] or row["handlers"]
        }

    async def due(
        self,
        partitions: Collection[TopicPartition],
        *,
        now: datetime,
        limit: int,
        excluding: Collection[ClaimKey] = (),
        handlers: Collection[str] | None = None,
    ) -> Sequence[Parked]:
        if not partitions:
            return []
        excluded = frozenset(excluding)
        rows = await self._sessions.fetch(
            SQL["due"],
            self._names.service,
            [partition.topic for partition in partitions],
            [partition.partition for partition in partitions],
            now,
            limit + len(excluded),
            None if handlers is None else list(handlers),
        )
        found = [row for row in rows if ClaimKey(row["handler"], row["digest"]) not in excluded]
        return [_parked(row) for row in found[:limit]]

    async def next_due(
        self,
        partitions: Collection[TopicPartition],
        *,
        excluding: Collection[ClaimKey] = (),
        handlers: Collection[str] | None = None,
    ) -> datetime | None:
        if not partitions:
            return None
        excluded = frozenset(excluding)
        rows = await self._sessions.fetch(
            SQL["next due"],
            self._names.service,
            [partition.topic for partition in partitions],
            [partition.partition for partition in partitions],
            1 + len(excluded),
            None if handlers is None else list(handlers),
        )
        return next((row["due"] for row in rows if ClaimKey(row["handler"], row["digest"]) not in excluded), None)

    async def changed(self) -> None:
        await self._news.wait()

    async def count(self) -> int:
        return sum((await self.counts()).values())

    async def counts(self, *, at_most: int | None = None) -> Mapping[str, int]:
        rows = await self._sessions.fetch(SQL["counts"], self._names.service, at_most)
        return {name: count for name, count in rows if count}

    async def waiting(self, handler: str, *, limit: int) -> Sequence[Parked]:
        rows = await self._sessions.fetch(SQL["waiting"], self._names.service, handler, limit)
        return [_parked(row) for row in rows]


class Gone(NamedTuple):
    """A parked row that was taken away: others may have waited for it."""

    topic: str
    key: bytes | None
    handler: int
    ordering: int


class ParkingInTransaction:
    """What a transaction does to parked events: whatever their number, a few statements."""

    def __init__(self, session: Session, names: Names) -> None:
        self._session = session
        self._names = names

    async def lock_parked(self, handlers: Sequence[int], digests: Sequence[bytes]) -> None:
        """Be the only one, until the transaction ends, who parks or takes away events of these parked ones' keys."""
        args = (PARKED_KEY, self._names.service, list(handlers), list(digests))
        await self._session.fetch_planned_anew(SQL["lock keys of parked"], *args)

    async def lock(self, keys: Collection[OrderingKey]) -> None:
        """Be the only one, until the transaction ends, who parks or takes away events of these keys."""
        if keys:
            args = ([key.topic for key in keys], [key.key for key in keys])
            await self._session.fetch_planned_anew(SQL["lock keys"], PARKED_KEY, self._names.service, *args)

    async def park(self, events: Collection[Parked]) -> None:
        """Put events behind what is parked of their keys; one that is parked already keeps its place."""
        events = list({event.claim: event for event in events}.values())
        service = self._names.service
        records = [event.record for event in events]
        await self.lock([OrderingKey(record.topic, record.key) for record in records if record.key is not None])
        handlers = await self._names.handlers({event.claim.handler for event in events})
        partitions = await self._names.partitions({record.source for record in records})
        numbers, digests = [handlers[each.claim.handler] for each in events], [each.claim.digest for each in events]
        changed = await self._session.fetch_planned_anew(
            SQL["park"],
            service,
            numbers,
            digests,
            [record.topic for record in records],
            [record.key for record in records],
            [partitions[record.source] for record in records],
            [ORDERINGS[event.order] for event in events],
            [event.due for event in events],
            [event.attempt for event in events],
            [event.first_failed_at for event in events],
            [event.content for event in events],
            [record.offset for record in records],
            [record.timestamp for record in records],
            [storable(event.error) for event in events],
            [encode_headers(record.headers) for record in records],
            [record.value for record in records],
        )
        await self._session.fetch_planned_anew(SQL["free parked"], service, numbers, digests)
        await self.free_anew({OrderingKey(row["topic"], row["key"]) for row in changed})

    async def remove(self, handlers: Sequence[int], digests: Sequence[bytes]) -> None:
        """Take events out, if they are parked, and free what waited for them alone."""
        await self.lock_parked(handlers, digests)
        rows = await self._session.fetch_planned_anew(SQL["remove"], list(handlers), list(digests))
        await self.free_behind(Gone(row["topic"], row["key"], row["handler"], row["ordering"]) for row in rows)

    async def free_anew(self, keys: Collection[OrderingKey]) -> None:
        """Find out again who of a key waits for whom: somebody has changed what waits for it."""
        if keys:
            args = ([key.topic for key in keys], [key.key for key in keys])
            await self._session.fetch_planned_anew(SQL["free anew"], self._names.service, *args)

    async def free_behind(self, gone: Iterable[Gone]) -> None:
        """Free what waited for these rows alone, which are gone."""
        held = {each for each in gone if each.key is not None}
        if keys := {(each.topic, each.key) for each in held if each.ordering == ORDERINGS["key"]}:
            args = ([topic for topic, _ in keys], [key for _, key in keys])
            await self._session.fetch_planned_anew(SQL["free after key"], self._names.service, *args)
        if narrow := {each for each in held if each.ordering == ORDERINGS["handler"]}:
            topics, keys_of = [each.topic for each in narrow], [each.key for each in narrow]
            handlers = [each.handler for each in narrow]
            await self._session.fetch_planned_anew(
                SQL["free after handler"], self._names.service, topics, keys_of, handlers
            )

    async def bring_back(self, letters: Sequence[DeadLetter], *, now: datetime) -> None:
        """Park dead letters, due now: behind what is parked of their keys, or where they stand if they halt them."""
        handlers = await self._names.handlers({letter.claim.handler for letter in letters})
        numbers, digests = [handlers[each.claim.handler] for each in letters], [each.claim.digest for each in letters]
        rows = await self._session.fetch_planned_anew(SQL["resume halted"], now, numbers, digests)
        halted = {(row["handler"], row["digest"]) for row in rows}
        others = [each for each in letters if (handlers[each.claim.handler], each.claim.digest) not in halted]
        if others:
            await self.park([_of_letter(letter, now) for letter in others])


def _of_letter(letter: DeadLetter, now: datetime) -> Parked:
    return Parked(
        letter.claim,
        letter.record,
        letter.order,
        attempt=0,
        due=now,
        content=letter.content,
        error=letter.error,
        first_failed_at=letter.first_failed_at,
    )


def _parked(row: Row) -> Parked:
    return Parked(
        claim=ClaimKey(row["handler"], row["digest"]),
        record=record_of(row),
        order=ORDERS[row["ordering"]],
        attempt=row["attempt"],
        due=row["due"],
        content=row["content"],
        error=row["error"],
        first_failed_at=row["first_failed_at"],
    )
