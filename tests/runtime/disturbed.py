"""A store and a log that fail, or wait, at a chosen moment, as a disk or a network does; otherwise the real ones."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import datetime, timedelta
from typing import Any, TypeAlias

from microflow.errors import RecordTooLarge, StoreError, StoreUnavailable, TopicRefused, TransportError
from microflow.ports import (
    Appended,
    Changes,
    Claim,
    ClaimKey,
    Connection,
    OrderingKey,
    OutboxRow,
    RebalanceListener,
    Record,
    Subscription,
    TopicPartition,
)
from microflow.stores.sqlite import SqliteStore
from microflow.stores.sqlite.transaction import SqliteTransaction
from microflow.transports.local import LocalTransport

Disturbance: TypeAlias = BaseException | Callable[[], Awaitable[None]]


class Moments:
    """What happens at which moment. `count` says how often each was passed; while `out`, everything is refused."""

    def __init__(self) -> None:
        self.planned: dict[str, deque[Disturbance]] = defaultdict(deque)
        self.count: dict[str, int] = defaultdict(int)
        self.out = False
        self.notes: list[str] = []

    def plan(self, moment: str, *disturbances: Disturbance) -> None:
        """The next times that the moment is reached, these happen."""
        self.planned[moment].extend(disturbances)

    async def reach(self, moment: str) -> None:
        self.count[moment] += 1
        if self.out and not moment.startswith("after"):
            raise StoreUnavailable("the disk is full")
        if planned := self.planned[moment]:
            disturbance = planned.popleft()
            if isinstance(disturbance, BaseException):
                raise disturbance
            await disturbance()


class DisturbedStore:
    """A store with `moments`: begin, fence, claim, write, commit, committed, probe, look_up, ROOM.METHOD; after
    look_up, after ROOM.METHOD."""

    def __init__(self, store: SqliteStore, moments: Moments, *, lanes: int = 1) -> None:
        self._store = store
        self._moments = moments
        self.lanes = lanes

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._store, name)
        return _Room(found, name, self._moments) if name in ROOMS else found

    async def look_up(self, claims: Collection[ClaimKey], keys: Collection[OrderingKey]) -> Any:
        await self._moments.reach("look_up")
        told = await self._store.look_up(claims, keys)
        await self._moments.reach("after look_up")
        return told

    async def probe(self) -> None:
        await self._moments.reach("probe")
        await self._store.probe()

    @asynccontextmanager
    async def transaction(self, *, pause: timedelta | None = None) -> AsyncIterator[_Transaction]:
        await self._moments.reach("begin")
        async with self._store.transaction(pause=pause) as transaction:
            yield _Transaction(transaction, self._moments)
            await self._moments.reach("commit")
        await self._moments.reach("committed")


ROOMS = {"partitions", "suspects", "inbox", "parking", "dead_letters", "outbox", "handlers"}


class _Room:
    def __init__(self, room: Any, name: str, moments: Moments) -> None:
        self._room = room
        self._name = name
        self._moments = moments

    def __getattr__(self, method: str) -> Any:
        found = getattr(self._room, method)
        if not callable(found):
            return found
        if method == "scan":
            return self._scan

        async def call(*args: Any, **keywords: Any) -> Any:
            await self._moments.reach(f"{self._name}.{method}")
            answer = await found(*args, **keywords)
            await self._moments.reach(f"after {self._name}.{method}")
            return answer

        return call

    @asynccontextmanager
    async def _scan(self, **keywords: Any) -> AsyncIterator[AsyncIterator[Sequence[OutboxRow]]]:
        await self._moments.reach(f"{self._name}.scan")
        async with self._room.scan(**keywords) as pages:
            yield pages


class _Transaction:
    def __init__(self, transaction: SqliteTransaction, moments: Moments) -> None:
        self._transaction = transaction
        self._moments = moments

    async def fence(
        self,
        epochs: Mapping[TopicPartition, int],
        *,
        registry: int | None = None,
        keys: Collection[OrderingKey] = (),
    ) -> None:
        await self._moments.reach("fence")
        await self._transaction.fence(epochs, registry=registry, keys=keys)

    async def claim(self, claims: Sequence[Claim], *, now: datetime) -> Sequence[bool]:
        await self._moments.reach("claim")
        return await self._transaction.claim(claims, now=now)

    @property
    def connection(self) -> Connection:
        return self._transaction.connection

    def session(self, kind: type[Any]) -> AbstractAsyncContextManager[Any]:
        return self._transaction.session(kind)

    @property
    def failure(self) -> StoreError | None:
        return self._transaction.failure

    async def write(self, changes: Changes) -> Sequence[Appended]:
        await self._moments.reach("write")
        return await self._transaction.write(changes)


class DisturbedLog:
    """A log with `moments`: publish, published. The partitions in `refuse` take nothing, those in `refuse_once` not the
    next time; topics that are `forbidden` take nothing, `missing` ones are not there; no record may exceed `limit`."""

    def __init__(self, transport: LocalTransport, moments: Moments) -> None:
        self._transport = transport
        self._moments = moments
        self.refuse: set[TopicPartition] = set()
        self.refuse_once: set[TopicPartition] = set()
        self.forbidden: set[str] = set()
        self.missing: set[str] = set()
        self.limit: int | None = None
        self.calls: list[Sequence[Record]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    @property
    def topics(self) -> Any:
        return _Topics(self._transport.topics, self.missing)

    async def publish(self, records: Sequence[Record]) -> Sequence[TransportError | None]:
        self.calls.append(records)
        await self._moments.reach("publish")
        failed: dict[TopicPartition, TransportError] = {}
        taken: list[Record] = []
        answers: list[TransportError | None] = []
        for record in records:
            if record.source not in failed and (refusal := self._refusal(record)) is not None:
                failed[record.source] = refusal
            answers.append(failed.get(record.source))
            if record.source not in failed:
                taken.append(record)
        self.refuse_once -= failed.keys()
        errors = iter(await self._transport.publish(taken))
        answers = [next(errors) if answer is None else answer for answer in answers]
        await self._moments.reach("published")
        return answers

    def _refusal(self, record: Record) -> TransportError | None:
        if record.topic in self.forbidden | self.missing:
            return TopicRefused(f"not authorised for {record.topic}")
        if record.source in self.refuse | self.refuse_once:
            return TransportError("no leader")
        if self.limit is not None and len(record.value or b"") > self.limit:
            return RecordTooLarge(f"{len(record.value or b'')} bytes")
        return None

    def subscribe(
        self, topics: Collection[str], *, group: str | None, listener: RebalanceListener
    ) -> AbstractAsyncContextManager[Subscription]:
        return self._transport.subscribe(topics, group=group, listener=listener)


class _Topics:
    """A log's topics, some of which are not there and are not made either."""

    def __init__(self, topics: Any, missing: set[str]) -> None:
        self._topics = topics
        self._missing = missing

    def __getattr__(self, name: str) -> Any:
        return getattr(self._topics, name)

    async def ensure(self, names: Collection[str]) -> frozenset[str]:
        missing: frozenset[str] = await self._topics.ensure(set(names) - self._missing)
        return missing | (self._missing & set(names))

    async def describe(self, names: Collection[str] | None = None) -> Mapping[str, Any]:
        found = await self._topics.describe(names)
        return {name: topic for name, topic in found.items() if name not in self._missing}
