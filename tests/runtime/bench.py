"""A bench: services of a few handlers at work, on stores and a log in memory, that a test can look into and disturb."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

from microflow.caution import Turn
from microflow.envelopes import Sealed, seal_root
from microflow.events import Message
from microflow.faults import Reach, pass_by
from microflow.limits import Limits
from microflow.partitioner import Partitioner
from microflow.ports import DeadLetter, Migration, Record, Store, TopicPartition, Transport
from microflow.reports import Report
from microflow.service import Definition, Service, build, topic_of
from microflow.stores.sqlite import SqliteStore
from microflow.tracing import UNTRACED, Tracing
from microflow.transports.local import LocalTransport
from microflow.worker import Surroundings, Worker
from tests.runtime.virtual_loop import LoopClock

EFFECTS = Migration(
    "effects", "create table effects (n integer primary key autoincrement, handler text, what text)", "bench.py"
)
PARENTS = Migration(
    "parents",
    "create table parents (id text primary key);"
    "create table children (parent text references parents (id) deferrable initially deferred)",
    "bench.py",
)
WRITE = "insert into effects (handler, what) values ($1, $2)"
PATIENCE = timedelta(seconds=20)


def service_of(*handlers: Callable[..., Any], name: str = "shop", **keywords: Any) -> Definition:
    """A built service of handlers that a test has defined inside of itself."""
    service = Service(name, **keywords)
    service.module = handlers[0].__module__
    service.namespace = {function.__name__: function for function in handlers}
    return build(service)


class Process:
    """One process of a service: a worker with its own handles on the database and on the log."""

    def __init__(self, bench: Bench, definition: Definition, name: str) -> None:
        self.bench = bench
        self.name = name
        self.definition = definition
        self.reports: list[Report] = []
        self.store: SqliteStore
        self.transport: LocalTransport
        self.worker: Worker

    def told(self, outcome: str | None = None, *, handler: str | None = None) -> list[Report]:
        """The reports with this outcome, of this handler."""
        return [
            each
            for each in self.reports
            if (outcome is None or each.outcome == outcome) and (handler is None or each.handler == handler)
        ]

    def outcomes(self) -> Counter[str]:
        return Counter(each.outcome for each in self.reports)

    async def crash(self) -> None:
        """End at once. The group notices as if the session had timed out."""
        await self.worker.kill()
        await self.transport.disconnect()
        await self.close()

    async def stop(self, *, drain: timedelta = timedelta(seconds=10)) -> bool:
        finished = await self.worker.stop(drain=drain)
        await self.close()
        return finished

    async def close(self) -> None:
        self.bench.processes.remove(self)
        await self.transport.close()
        await self.store.close()


class Bench:
    """A log, and the processes at work on it. `clock` is the loop's."""

    def __init__(self, *, partitions: int) -> None:
        self.clock = LoopClock()
        self.chance = random.Random(1)
        self.processes: list[Process] = []
        self.partitions = partitions
        self.log: LocalTransport
        self._stores: dict[str, SqliteStore] = {}
        self._handles: list[SqliteStore] = []
        self._partitioner = Partitioner()
        self._numbers = itertools.count()

    async def start(
        self,
        *handlers: Callable[..., Any],
        name: str = "shop",
        limits: Limits | None = None,
        store: Callable[[SqliteStore], Store] | None = None,
        transport: Callable[[LocalTransport], Transport] | None = None,
        dependencies: Mapping[Any, Any] | None = None,
        reach: Reach = pass_by,
        tracing: Tracing = UNTRACED,
        turn: Turn | None = None,
        definition: Definition | None = None,
        migrations: Sequence[Migration] = (EFFECTS,),
        **keywords: Any,
    ) -> Process:
        """Start a process of a service. `store` and `transport` may put something between it and the real ones."""
        definition = definition or service_of(*handlers, name=name, **keywords)
        process = Process(self, definition, f"{definition.name}-{next(self._numbers)}")
        process.store = await self._open(definition.name)
        process.transport = self.open_log()
        process.worker = Worker(
            definition,
            Surroundings(
                store=store(process.store) if store else process.store,
                transport=transport(process.transport) if transport else process.transport,
                clock=self.clock,
                owner=process.name,
                chance=self.chance.random,
                limits=limits or Limits(),
                observe=process.reports.append,
                reach=reach,
                tracing=tracing,
                dependencies=dependencies,
                turn=turn or Turn(),
            ),
            migrations=migrations,
        )
        self.processes.append(process)
        try:
            await process.worker.start()
        except BaseException:
            await process.close()
            raise
        return process

    def open_log(self) -> LocalTransport:
        return LocalTransport.open(
            self.log.path,
            clock=self.clock,
            session_timeout=None,
            partitions=self.partitions,
            max_record_bytes=100_000,
        )

    async def _open(self, service: str) -> SqliteStore:
        if service not in self._stores:  # the first one keeps the file until the bench is cleared
            self._stores[service] = await SqliteStore.open(
                Path(f"{service}.db"), service=service, clock=self.clock, memory=True
            )
        path = self._stores[service]._database.path
        return await SqliteStore.open(path, service=service, clock=self.clock)

    async def another_store(self, service: str = "shop") -> SqliteStore:
        """Another handle on a service's database, as another process would have it; open until the bench is cleared."""
        self._handles.append(await self._open(service))
        return self._handles[-1]

    async def store(self, service: str = "shop") -> SqliteStore:
        """A service's database, whether or not a process is at work on it."""
        if service not in self._stores:
            await (await self._open(service)).close()
        return self._stores[service]

    # ── records ───────────────────────────────────────────────────────────────────────────────────────────────────

    def sealed(self, event: Message) -> Sealed:
        return seal_root(
            event,
            service="web",
            topic=topic_of(type(event), {}),
            now=self.clock.now(),
            random_bits=self.chance.getrandbits,
        )

    def record(self, event: Message, *, partition: int | None = None, topic: str | None = None) -> Record:
        sealed = self.sealed(event)
        if partition is None:
            assert sealed.key is not None
            partition = self._partitioner.partition(sealed.key, partitions=self.partitions)
        return Record(topic or sealed.topic, partition, sealed.key, sealed.value, sealed.headers)

    async def emit(self, *events: Message) -> list[Record]:
        """Publish events as somebody outside would."""
        records = [self.record(event) for event in events]
        await self.publish(*records)
        return records

    async def publish(self, *records: Record) -> None:
        assert set(await self.log.publish(records)) <= {None}

    async def create_again(self, topic: str) -> None:
        """Delete a topic with all that is in it, and create another one of its name. The embedded log itself cannot."""
        async with self.log._log.writing() as connection:
            connection.execute("delete from microflow_log_records")
            connection.execute("update microflow_log_partitions set beginning = 0, ending = 0, newest = 0")
            connection.execute(
                "update microflow_log_topics set incarnation = incarnation || '-2' where name = ?", (topic,)
            )

    async def published(self, topic: str) -> list[Record]:
        """The records of a topic, partition by partition."""
        return await read_all(self.log, topic)

    # ── waiting and looking ───────────────────────────────────────────────────────────────────────────────────────

    async def until(self, condition: Callable[[], Any]) -> None:
        """Let time pass until something is so, or fail."""
        end = self.clock.monotonic() + PATIENCE
        while not condition():
            self.raise_failures()
            assert self.clock.monotonic() < end, "it never came to be"
            await asyncio.sleep(0.001)

    async def until_failed(self, process: Process, kind: type[Exception]) -> None:
        """Let time pass until a process cannot go on, for this reason, or fail."""
        end = self.clock.monotonic() + PATIENCE
        while not isinstance(process.worker.failure, kind):
            assert self.clock.monotonic() < end, f"it went on: {process.worker.failure!r}"
            await asyncio.sleep(0.001)

    async def settle(self) -> None:
        """Let time pass until nobody has anything to do that is due."""
        end = self.clock.monotonic() + PATIENCE
        quiet = 0
        while quiet < 3:
            await asyncio.sleep(0.01)
            self.raise_failures()
            assert self.clock.monotonic() < end, "there is always something left to do"
            quiet = quiet + 1 if all([await each.worker.idle() for each in self.processes]) else 0

    async def pass_time(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
        self.raise_failures()

    def raise_failures(self) -> None:
        for process in self.processes:
            if process.worker.failure is not None:
                raise process.worker.failure

    async def effects(self, service: str = "shop", *, handler: str | None = None) -> list[str]:
        """What handlers have written, in the order in which it was committed."""
        rows = (await self.store(service))._database.read("select handler, what from effects order by n")
        return [what for name, what in rows if handler in (None, name)]

    async def parked(self, service: str = "shop") -> int:
        return await (await self.store(service)).parking.count()

    async def dead_letters(self, service: str = "shop") -> Sequence[DeadLetter]:
        return await (await self.store(service)).dead_letters.list()

    async def watermarks(self, service: str = "shop") -> Mapping[TopicPartition, int]:
        return await (await self.store(service)).partitions.watermarks()

    async def clear(self) -> None:
        for process in tuple(self.processes):
            await process.crash()
        for store in (*self._handles, *self._stores.values()):
            await store.close()
        await self.log.close()


async def read_all(log: LocalTransport, topic: str) -> list[Record]:
    """The records of a topic, partition by partition."""
    records: list[Record] = []
    found = (await log.topics.describe([topic])).get(topic)
    if found is None:
        return []
    sources = [TopicPartition(topic, number) for number in range(found.partitions)]
    bounds = await log.topics.bounds(sources)
    left = sum(bound.end - bound.beginning for bound in bounds.values())
    async with log.subscribe([topic], group=None, listener=(listener := _FromTheStart())) as reader:
        listener.reader = reader
        while len(records) < left:
            records += await reader.fetch(max_records=1000, wait=timedelta(seconds=1))
    return sorted(records, key=lambda each: (each.partition, each.offset))


class _FromTheStart:
    reader: Any = None

    async def revoked(self, partitions: frozenset[TopicPartition]) -> None: ...

    async def assigned(self, partitions: frozenset[TopicPartition]) -> None:
        for partition in partitions:
            self.reader.seek(partition, 0)


@asynccontextmanager
async def bench(*, partitions: int = 1) -> AsyncIterator[Bench]:
    """A bench whose topics have this many partitions; cleared afterwards, whatever happened."""
    it = Bench(partitions=partitions)
    it.log = LocalTransport.open(
        Path("log.db"),
        clock=it.clock,
        memory=True,
        session_timeout=None,
        partitions=partitions,
        max_record_bytes=100_000,
    )
    try:
        yield it
    finally:
        await it.clear()


class Gate:
    """Handlers wait at it until a test opens it, for one name or for all; `waiting` are those who do."""

    def __init__(self) -> None:
        self._open: set[str] = set()
        self._all = False
        self._changed = asyncio.Event()
        self.waiting: list[str] = []
        self.passed: list[str] = []

    async def pass_through(self, name: str) -> None:
        self.waiting.append(name)
        try:
            while not self._all and name not in self._open:
                await self._changed.wait()
        finally:
            self.waiting.remove(name)
        self.passed.append(name)

    def open(self, *names: str) -> None:
        self._all = self._all or not names
        self._open.update(names)
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()
