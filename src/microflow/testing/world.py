"""A world: services in one process, on a log and databases in memory, in virtual time."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any

from microflow.dead_letter_copies import is_copy
from microflow.envelopes import seal_root
from microflow.errors import ContractError, DefinitionError, MicroflowError
from microflow.events import Message, check_event_class, options_of
from microflow.limits import Limits
from microflow.partitioner import Partitioner
from microflow.ports import DeadLetter, Record
from microflow.reports import Report
from microflow.service import Definition, Service, build, service_of, topic_of
from microflow.stores.sqlite import SqliteStore
from microflow.tables import read_migrations
from microflow.testing.chains import Chains
from microflow.testing.seen_events import RecordedTransport, SeenEvent, seen
from microflow.testing.tables import WorldConnection
from microflow.transports.local import LocalTransport
from microflow.virtual_time import START, VirtualClock
from microflow.worker import Surroundings, Worker

PATIENCE = 20.0
"""Seconds of real time without any progress after which `settle` gives up."""
SMALL_WAIT = timedelta(seconds=1)
FOR_EVER = timedelta(days=365)
"""Nothing is to happen in a world only because time passes, unless it is what a test lets time pass for."""


class World:
    """Services in one process, each with a database in memory, on one log in memory, in virtual time.

    `services` are modules or `Service`s. `dependencies` replace what their lifespans provide; a lifespan that
    provides nothing else is not entered. `seed` decides everything that is random; time begins at `start`. `reports`
    holds one report for each execution of a handler whose end is known. A `settle` in which events cause each other
    more than `longest_chain` times in a row, as they do for ever in a circle, is an error.
    """

    def __init__(
        self,
        *services: ModuleType | Service,
        dependencies: Mapping[Any, Any] | None = None,
        seed: int = 0,
        start: datetime = START,
        topics: Mapping[str, str] | None = None,
        limits: Limits | None = None,
        longest_chain: int = 1000,
    ) -> None:
        self._topics = dict(topics or {})
        self._definitions = [build(service_of(service), topics=self._topics) for service in services]
        self._dependencies = dict(dependencies or {})
        self._random = random.Random(seed)
        self._limits = replace(limits or Limits(), fetch_wait=FOR_EVER, heartbeat=FOR_EVER)
        self.clock = VirtualClock(start)
        self.reports: list[Report] = []
        self._opened = AsyncExitStack()
        self._members: dict[str, _Member] = {}
        self._partitioner = Partitioner()
        self._events: list[SeenEvent] = []
        self._longest_chain = longest_chain

    async def __aenter__(self) -> World:
        __tracebackhide__ = True
        names = [definition.name for definition in self._definitions]
        if twice := {name for name in names if names.count(name) > 1}:
            raise DefinitionError(f"Two services of this world are called {', '.join(sorted(twice))}.")
        try:
            self._log = LocalTransport.open(Path("log.db"), clock=self.clock, memory=True, session_timeout=None)
            self._opened.push_async_callback(self._log.close)
            for definition in self._definitions:
                store = await SqliteStore.open(
                    Path(f"{definition.name}.db"), service=definition.name, clock=self.clock, memory=True
                )
                self._opened.push_async_callback(store.close)
                self._members[definition.name] = _Member(definition, store)
            for member in self._members.values():
                await self._start(member)
            await self.settle()
        except BaseException:
            await self._close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._close()

    # ── what a test does ──────────────────────────────────────────────────────────────────────────────────────────

    async def emit(
        self,
        event: Message,
        *,
        key: str | None = None,
        correlation_id: str | None = None,
        id: str | None = None,  # noqa: A002 - the word of CloudEvents
        topic: str | None = None,
    ) -> str:
        """Publish an event as somebody outside would; return its id. It is handled by the next `settle`.

        `key` is its partition key if its class names none, `correlation_id` its flow (default: its own id). The same
        `id` twice is a duplicate. Raises ContractError for an event without a key.
        """
        __tracebackhide__ = True
        if not isinstance(event, Message):
            raise ContractError(f"{event!r} is no event.", fix='await world.emit(OrderPlaced(order_id="o-1"))')
        check_event_class(type(event))
        sealed = seal_root(
            event,
            service="world",
            topic=topic or self._topic_of(type(event)),
            now=self.clock.now(),
            random_bits=self._random.getrandbits,
            correlation_id=correlation_id,
            key=key,
            identifier=id,
        )
        await self._log.topics.ensure([sealed.topic])
        partitions = (await self._log.topics.describe([sealed.topic]))[sealed.topic].partitions
        assert sealed.key is not None
        partition = self._partitioner.partition(sealed.key, partitions=partitions)
        await self.publish(Record(sealed.topic, partition, sealed.key, sealed.value, sealed.headers))
        return sealed.id

    async def publish(self, *records: Record) -> None:
        """Put raw records into the log, whatever they hold. Raises TransportError if it does not take one."""
        __tracebackhide__ = True
        await self._log.topics.ensure({record.topic for record in records})
        for record, error in zip(records, await self._log.publish(records), strict=True):
            if error is not None:
                raise error
            self._remember(record)

    async def settle(self) -> None:
        """Return once nothing is left to do until something arrives or time passes.

        Raises what kept a service from going on, and MicroflowError if a handler does not come to an end, or events
        cause each other in a circle.
        """
        __tracebackhide__ = True
        chains = Chains(self.reports, longest=self._longest_chain)
        progress, seen = time.monotonic(), -1
        while True:
            for _ in range(20):
                await asyncio.sleep(0)
            self._raise_failures()
            chains.check()
            if await self._idle():
                break
            if (done := len(self.reports)) != seen:
                progress, seen = time.monotonic(), done
            elif time.monotonic() - progress > PATIENCE:
                raise MicroflowError(f"After {PATIENCE:g} s there is still something to do: {self._unfinished()}.")
            elif time.monotonic() - progress > 0.02:
                await asyncio.sleep(0.001)  # a thread, or the user's own I/O, is at work
                self._pass_small_waits()
        await self._look()

    async def advance(self, duration: timedelta) -> None:
        """Let time pass: every retry that becomes due meanwhile runs at its own instant. Settles before and after."""
        __tracebackhide__ = True
        if duration < timedelta(0):
            raise MicroflowError(
                f"Time cannot go back by {-duration}.", fix="await world.advance(timedelta(minutes=10))"
            )
        await self.settle()
        end = self.clock.monotonic() + duration
        while (wake := self.clock.next_wake()) is not None and wake <= end:
            self.clock.step_to(wake)
            await self.settle()
        self.clock.step_to(end)
        await self.settle()

    def events(self, *, flow: str | None = None, type: str | None = None) -> list[SeenEvent]:  # noqa: A002
        """The events in the log, in the order in which they were published."""
        return [each for each in self._events if flow in (None, each.flow) and type in (None, each.type)]

    def dead_letters(self, service: str | None = None) -> list[DeadLetter]:
        """The dead letters as of the last `settle`, of all services or of one; redriven ones are left out."""
        members = self._members.items()
        return [letter for name, member in members if service in (None, name) for letter in member.dead_letters]

    async def redrive(self, service: str, *identifiers: int) -> None:
        """Send dead letters of a service back to the handlers that gave them up; all of them without identifiers.

        Raises MicroflowError if one of the identifiers is no dead letter's; the others are redriven.
        """
        __tracebackhide__ = True
        member = self._member(service)
        dead = [letter.id for letter in member.dead_letters]
        redriven = await member.store.dead_letters.redrive(identifiers or dead, now=self.clock.now())
        member.running.resume_parked()
        if strangers := sorted(set(identifiers) - redriven):
            raise MicroflowError(
                f"{service} has no dead letter {', '.join(map(str, strangers))} to redrive.",
                fix=f"It has: {', '.join(map(str, dead)) or 'none'}.",
            )

    def connection(self, service: str) -> WorldConnection:
        """A service's own tables: `await world.connection("payments").fetch("select …")`."""
        __tracebackhide__ = True
        return WorldConnection(self._member(service).store)

    async def crash(self, service: str) -> None:
        """End a service as `kill -9` would, whatever it is doing, and start it again."""
        __tracebackhide__ = True
        member = self._member(service)
        await member.end()
        await self._start(member)

    # ── how it works ──────────────────────────────────────────────────────────────────────────────────────────────

    async def _start(self, member: _Member) -> None:
        __tracebackhide__ = True
        transport = LocalTransport.open(self._log.path, clock=self.clock, session_timeout=None)
        surroundings = Surroundings(
            store=member.store,
            transport=RecordedTransport(transport, self._remember),
            clock=self.clock,
            # One name before and after a crash: the relay's lease goes on, and no test has to wait for its end.
            owner=f"world-{member.definition.name}",
            chance=self._random.random,
            limits=self._limits,
            observe=self.reports.append,
            dependencies=self._dependencies,
        )
        migrations = read_migrations(member.definition.tables, dialect="sqlite")
        worker = Worker(member.definition, surroundings, migrations=migrations)
        try:
            await worker.start()
        except BaseException:
            await transport.close()
            raise
        member.worker, member.transport = worker, transport

    def _remember(self, record: Record) -> None:
        if not is_copy(record):  # of a dead letter: nothing that anybody emitted
            self._events.append(seen(record))

    async def _close(self) -> None:
        for member in self._members.values():
            await member.end()
        await self._opened.aclose()

    async def _idle(self) -> bool:
        return all([await member.running.idle() for member in self._members.values()])

    def _raise_failures(self) -> None:
        __tracebackhide__ = True
        for member in self._members.values():
            if member.worker is not None and member.worker.failure is not None:
                raise member.worker.failure

    def _pass_small_waits(self) -> None:
        # A backoff of a few milliseconds is no time that a test should have to advance; a retry's delay is.
        wake = self.clock.next_wake()
        if wake is not None and wake - self.clock.monotonic() <= SMALL_WAIT and not self._executing():
            self.clock.step_to(wake)

    def _executing(self) -> list[str]:
        return [each for member in self._members.values() for each in member.running.executing()]

    def _unfinished(self) -> str:
        return ", ".join(self._executing()) or "events that nobody takes"

    async def _look(self) -> None:
        for member in self._members.values():
            letters = await member.store.dead_letters.list(limit=1_000_000)
            member.dead_letters = [letter for letter in letters if letter.state == "dead"]

    def _member(self, service: str) -> _Member:
        __tracebackhide__ = True
        if service not in self._members:
            raise MicroflowError(f"This world has no service {service!r}.", fix=f"It has: {', '.join(self._members)}.")
        return self._members[service]

    def _topic_of(self, event: type[Message]) -> str:
        options = options_of(event)
        for definition in self._definitions:
            for handler in definition.handlers:
                for trigger in handler.triggers:
                    if trigger.event_type == options.type:
                        return trigger.topic
        return topic_of(event, self._topics)


@dataclass(slots=True)
class _Member:
    """One service of a world: its database stays while its worker comes and goes."""

    definition: Definition
    store: SqliteStore
    worker: Worker | None = None
    transport: LocalTransport | None = None
    dead_letters: list[DeadLetter] = field(default_factory=list)

    @property
    def running(self) -> Worker:
        assert self.worker is not None
        return self.worker

    async def end(self) -> None:
        if self.worker is not None:
            await self.worker.kill()
        if self.transport is not None:
            await self.transport.disconnect()
            await self.transport.close()
        self.worker = self.transport = None
