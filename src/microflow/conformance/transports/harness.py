"""What the scenarios ask of whoever runs them, and the members that take part in them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, fields
from datetime import timedelta
from typing import Protocol, TypeAlias

from microflow.errors import TransportError
from microflow.ports import Clock, Record, Subscription, TopicPartition, Transport

_moment = ContextVar("moment", default=timedelta(milliseconds=60))

LONG = timedelta(seconds=20)
"""How long a fetch waits that is to find something."""


@dataclass(frozen=True, slots=True)
class Abilities:
    """What a transport can do, beyond what it must. A scenario that needs more is left out.

    `persistent`: the log is still there after all handles were closed. `creates_topics`: a topic is created when it
    is named first. `session_expiry`: the harness can `silence` a handle. `retention`: the harness can `expire` records.
    `dense_offsets`: a partition's offsets have no gaps. `topic_settings`: a topic has a replication and a retention of
    its own. `partitions`: of a topic that the harness creates, 3 at least. `moment` is how long a fetch waits that is
    to find nothing: whatever is there comes sooner. `time_limit` is for one scenario.
    """

    persistent: bool = True
    creates_topics: bool = False
    session_expiry: bool = False
    retention: bool = False
    dense_offsets: bool = False
    topic_settings: bool = False
    partitions: int = 6
    moment: timedelta = timedelta(milliseconds=60)
    time_limit: timedelta = timedelta(seconds=60)


class Harness(Protocol):
    """One log to try a transport on. It may be new for each scenario, or be shared by all of them."""

    @property
    def abilities(self) -> Abilities: ...

    @property
    def clock(self) -> Clock:
        """Real time: the scenarios wait for what other tasks and the log itself do."""
        ...

    def new_name(self) -> str:
        """A name that no topic and no group of the log has."""
        ...

    async def open(self) -> Transport:
        """Another handle on the same log, independent of all others, as another process would have."""
        ...

    async def create_topic(self, name: str) -> None:
        """Create a topic with `abilities.partitions` partitions."""
        ...

    async def silence(self, transport: Transport) -> None:
        """Return once all members of a handle have been expelled, as if they had said nothing for too long."""
        ...

    async def expire(self, transport: Transport) -> None:
        """Return once every record that is in the log now is older than the retention, and gone."""
        ...


Run: TypeAlias = Callable[[Harness], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Scenario:
    """One promise, shown. Calling it returns if the transport keeps the promise, and raises if not."""

    name: str
    run: Run
    requires: frozenset[str]

    async def __call__(self, harness: Harness) -> None:
        abilities = harness.abilities
        known = _moment.set(abilities.moment)
        try:
            async with asyncio.timeout(abilities.time_limit.total_seconds()):
                await self.run(harness)
        finally:
            _moment.reset(known)

    def __str__(self) -> str:
        return self.name

    def suits(self, abilities: Abilities) -> bool:
        """Whether a transport with these abilities can be asked to keep this promise."""
        return all(getattr(abilities, ability) for ability in self.requires)


class Scenarios:
    """Collects the scenarios of one subject."""

    def __init__(self) -> None:
        self.all: list[Scenario] = []

    def add(self, *, requires: Collection[str] = ()) -> Callable[[Run], Run]:
        """Add a function, which needs certain abilities, under its name read as a sentence."""
        unknown = set(requires) - {field.name for field in fields(Abilities)}
        assert not unknown, unknown

        def collect(run: Run) -> Run:
            name: str = getattr(run, "__name__", repr(run))
            self.all.append(Scenario(name.replace("_", " "), run, frozenset(requires)))
            return run

        return collect


class Ownership:
    """Who has which partition of a group, by what the listeners were told. Nobody may get what another one has."""

    def __init__(self) -> None:
        self._owners: dict[TopicPartition, Member] = {}

    def take(self, member: Member, partitions: Iterable[TopicPartition]) -> None:
        for partition in partitions:
            owner = self._owners.setdefault(partition, member)
            assert owner is member, f"{partition} was assigned while another member still had it"

    def release(self, member: Member) -> None:
        self._owners = {partition: owner for partition, owner in self._owners.items() if owner is not member}


class Member:
    """A listener that seeks where it is told to, and remembers everything.

    `starts` are the offsets to seek, 0 where there is none; None seeks nothing. `before_revoked` and
    `before_assigned` are awaited first, so that a scenario can hold a callback up.
    """

    def __init__(self, ownership: Ownership | None = None) -> None:
        self.starts: Mapping[TopicPartition, int] | None = {}
        self.told: list[tuple[str, frozenset[TopicPartition]]] = []
        self.records: list[Record] = []
        self.partitions: frozenset[TopicPartition] = frozenset()
        self.before_revoked: Callable[[], Awaitable[object]] = _nothing
        self.before_assigned: Callable[[], Awaitable[object]] = _nothing
        self.failure: BaseException | None = None
        self.has_left = False
        self._subscription: Subscription | None = None
        self._ownership = ownership or Ownership()
        self._inside = False
        self._changed = asyncio.Condition()

    @property
    def subscription(self) -> Subscription:
        assert self._subscription is not None
        return self._subscription

    def attach(self, subscription: Subscription) -> None:
        self._subscription = subscription

    def vanish(self) -> None:
        """Note that others may have this member's partitions from now on, though it was not told."""
        self._ownership.release(self)

    async def revoked(self, partitions: frozenset[TopicPartition]) -> None:
        async with self._callback():
            assert partitions == self.partitions, (partitions, self.partitions)
            await self.before_revoked()
            self.partitions = frozenset()
            self._ownership.release(self)
            self.told.append(("revoked", partitions))

    async def assigned(self, partitions: frozenset[TopicPartition]) -> None:
        async with self._callback():
            self._ownership.take(self, partitions)
            await self.before_assigned()
            if self.starts is not None:
                for partition in partitions:
                    self.subscription.seek(partition, self.starts.get(partition, 0))
            self.partitions = partitions
            self.told.append(("assigned", partitions))

    async def fetch(self, *, wait: timedelta = LONG, max_records: int = 500) -> list[Record]:
        """Fetch once, and remember what came."""
        records = list(await self.subscription.fetch(max_records=max_records, wait=wait))
        self.records += records
        return records

    async def collect(self, count: int, *, max_records: int = 500) -> list[Record]:
        """Fetch until so many more records have come."""
        before = len(self.records)
        while len(self.records) < before + count:
            await self.fetch(max_records=max_records)
        return self.records[before:]

    async def settle(self) -> list[Record]:
        """Fetch until the first assignment has come and then, for a whole moment, nothing more."""
        before = len(self.records)
        quiet = False
        while not quiet:
            was_told = bool(self.told)
            quiet = not await self.fetch(wait=_moment.get()) and was_told
        return self.records[before:]

    async def leave(self) -> None:
        """Close the subscription while others go on."""
        self.has_left = True
        self.vanish()
        await self.subscription.close()

    async def keep_fetching(self) -> None:
        """Fetch until cancelled or gone, as a consumer does."""
        try:
            while not self.has_left:
                await self.fetch()
                await self._tell()
        except Exception as error:
            self.failure = error
            await self._tell()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until something that this member was told or fetched makes a condition true."""
        async with self._changed:
            await self._changed.wait_for(lambda: self.failure is not None or condition())
        if self.failure is not None:
            raise self.failure

    async def _tell(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    @contextlib.asynccontextmanager
    async def _callback(self) -> AsyncIterator[None]:
        try:
            assert not self._inside, "two callbacks of a listener overlap"
            self._inside = True
            yield
        except AssertionError as error:
            self.failure = error
            raise
        finally:
            self._inside = False
            await self._tell()


@contextlib.asynccontextmanager
async def opened(harness: Harness) -> AsyncIterator[Transport]:
    """A handle that is closed when the scenario is done with it."""
    transport = await harness.open()
    try:
        yield transport
    finally:
        await transport.close()


@contextlib.asynccontextmanager
async def member_of(
    transport: Transport, topics: Collection[str], *, group: str | None, ownership: Ownership | None = None
) -> AsyncIterator[Member]:
    """A member that fetches when it is told to. With `group=None` it reads everything."""
    member = Member(ownership)
    async with transport.subscribe(topics, group=group, listener=member) as subscription:
        member.attach(subscription)
        yield member
        member.vanish()


@contextlib.asynccontextmanager
async def consuming(
    transport: Transport, topics: Collection[str], *, group: str | None, ownership: Ownership | None = None
) -> AsyncIterator[Member]:
    """A member that fetches all the time."""
    async with member_of(transport, topics, group=group, ownership=ownership) as member, fetching(member):
        yield member


@contextlib.asynccontextmanager
async def fetching(member: Member) -> AsyncIterator[None]:
    """Let a member fetch all the time, until the end of the block."""
    task = asyncio.get_running_loop().create_task(member.keep_fetching())
    try:
        yield
        if member.failure is not None:
            raise member.failure
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def new_topic(harness: Harness) -> str:
    """A topic that is there, without records."""
    name = harness.new_name()
    await harness.create_topic(name)
    return name


def partitions_of(harness: Harness, *topics: str) -> frozenset[TopicPartition]:
    """All partitions of topics that the harness created."""
    return frozenset(TopicPartition(topic, each) for topic in topics for each in range(harness.abilities.partitions))


async def publish(transport: Transport, *records: Record) -> None:
    """Publish what must be taken."""
    errors = await transport.publish(records)
    assert list(errors) == [None] * len(records), errors


async def read_all(transport: Transport, topic: str) -> list[Record]:
    """All records of a topic, by partition and offset."""
    async with member_of(transport, [topic], group=None) as member:
        records = await member.settle()
    return sorted(records, key=lambda record: (record.partition, record.offset))


async def refuses(attempt: Awaitable[object]) -> TransportError:
    """The TransportError that an attempt must end with."""
    try:
        outcome = await attempt
    except TransportError as error:
        return error
    raise AssertionError(f"nothing was raised; the outcome was {outcome!r}")


def numbered(topic: str, count: int, *, partition: int = 0, first: int = 0) -> list[Record]:
    """Records whose values are their numbers."""
    return [Record(topic, partition, b"key", str(number).encode()) for number in range(first, first + count)]


def values(records: Iterable[Record], *, partition: int | None = None) -> list[int]:
    """The numbers in records, of one partition or of all."""
    return [int(each.value or b"-1") for each in records if partition is None or each.partition == partition]


async def _nothing() -> None:
    pass
