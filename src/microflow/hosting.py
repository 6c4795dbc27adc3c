"""Running a service: from its author's module to a process that handles events. The command does it this way."""

from __future__ import annotations

import asyncio
import os
import random
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from types import ModuleType
from weakref import WeakKeyDictionary

from microflow.addresses import masked
from microflow.caution import Turn
from microflow.clocks import SystemClock
from microflow.connect import dialect_of, is_postgres
from microflow.database_clock import DatabaseClock
from microflow.fault_injection import read_fault
from microflow.lookout import Lookout
from microflow.permissions import check_permissions
from microflow.ports import Clock, Store
from microflow.reaching import Reaching
from microflow.readiness import Readiness
from microflow.reports import Observe, look_away
from microflow.service import Definition, Service, build, service_of
from microflow.settings import Settings, read_settings
from microflow.tables import read_migrations
from microflow.telemetry import place_of, tracing_of
from microflow.worker import Surroundings, Worker

# The services of a process, whoever runs them: one that ends it ends all of them.
_turns: WeakKeyDictionary[asyncio.AbstractEventLoop, Turn] = WeakKeyDictionary()


@dataclass(frozen=True, slots=True, repr=False)
class Running:
    """A service that runs. `ended` returns never, and raises when the service cannot go on. `database` is the URL that
    it is connected to, password included, so that others can connect to the same."""

    definition: Definition
    database: str
    log: str
    worker: Worker

    def __repr__(self) -> str:
        return f"Running({self.name!r}, database={masked(self.database)!r}, log={self.log!r})"

    @property
    def name(self) -> str:
        return self.definition.name

    async def ended(self) -> None:
        await self.worker.ended()

    async def readiness(self) -> Readiness:
        """Whether the service is ready for work, for whoever asks this process."""
        return await self.worker.readiness()


@asynccontextmanager
async def running(
    service: Service | ModuleType,
    *,
    settings: Settings | None = None,
    observe: Observe = look_away,
    clock: Clock | None = None,
    migrate: bool = True,
    is_alone: bool = False,
) -> AsyncIterator[Running]:
    """Run a service while the block runs; leaving it drains and stops the service. Installs no signal handlers.

    `service` is a `Service`, or a module with handlers. Without `settings`, those of the environment and the
    project's files. `migrate=False` leaves the service's own tables alone. If the service cannot go on, the block
    is cancelled and the service's error raised.

    Spans go where the program's own provider sends them, or OpenTelemetry's variables say; `is_alone` is for a process
    that does nothing else: its provider is then everybody's there.

    A log or a database that does not answer yet is waited for, for `settings.wait`. Raises DefinitionError,
    SettingsError, IdentityError, StoreError or TransportError when it cannot start.
    """
    settings = read_settings() if settings is None else settings
    definition = build(service_of(service), topics=settings.topics)
    machine = clock or SystemClock()
    async with AsyncExitStack() as opened:
        reaching = Reaching(settings, clock=machine)
        transport = await reaching.log()
        opened.push_async_callback(transport.close)
        await check_permissions(definition, transport, settings)
        store = await reaching.store(definition.name)
        opened.push_async_callback(store.close)
        if clock is None:
            clock = await opened.enter_async_context(clock_of(store, settings.database_of(definition.name), machine))
        owner = process_name()
        place = place_of(settings.kafka, client_id=owner)
        traced = tracing_of(
            definition.name, place=place, clock=machine, environment=settings.opentelemetry, is_alone=is_alone
        )
        surroundings = Surroundings(
            store=store,
            transport=transport,
            clock=clock,
            owner=owner,
            chance=random.SystemRandom().random,
            limits=settings.limits,
            observe=observe,
            tracing=await opened.enter_async_context(traced),
            reach=read_fault(settings.fault),
            turn=_turns.setdefault(asyncio.get_running_loop(), Turn()),
        )
        dialect = dialect_of(settings.database_of(definition.name))
        migrations = read_migrations(definition.tables, dialect=dialect) if migrate else []
        worker = Worker(definition, surroundings, migrations=migrations)
        await worker.start()
        try:
            async with _cancelled_when_ended(worker), _watched_by(Lookout(store.outbox, clock=clock)):
                yield Running(definition, settings.database_of(definition.name), settings.kafka, worker)
        finally:
            await worker.stop(drain=settings.drain)


async def run(service: Service | ModuleType, *, settings: Settings | None = None) -> None:
    """Run a service until this task is cancelled, or raise why it cannot go on. Installs no signal handlers."""
    async with running(service, settings=settings) as it:
        await it.ended()


@asynccontextmanager
async def clock_of(store: Store, url: str, machine: Clock) -> AsyncIterator[Clock]:
    """The time that all processes of a service have: a server's, if its database is on one."""
    if not is_postgres(url):
        yield machine
        return
    clock = await DatabaseClock.read(store.time, machine=machine)
    async with clock.kept_right(store.time):
        yield clock


def process_name() -> str:
    """A name for this process that no other one has: host, pid, and a few random digits against a reused pid."""
    return f"{socket.gethostname()}-{os.getpid()}-{random.SystemRandom().getrandbits(32):08x}"


@asynccontextmanager
async def _watched_by(lookout: Lookout) -> AsyncIterator[None]:
    looking = asyncio.get_running_loop().create_task(lookout.run())
    try:
        yield
    finally:
        looking.cancel()


@asynccontextmanager
async def _cancelled_when_ended(worker: Worker) -> AsyncIterator[None]:
    """Cancel the block when the worker ends by itself, and raise the worker's error instead."""
    block = asyncio.current_task()
    assert block is not None
    failure: BaseException | None = None

    async def watch() -> None:
        nonlocal failure
        try:
            await worker.ended()
        except Exception as error:
            failure = error
            block.cancel()

    watcher = asyncio.get_running_loop().create_task(watch())
    try:
        yield
    except asyncio.CancelledError:
        if failure is None:
            raise
        block.uncancel()
        raise failure from None
    finally:
        watcher.cancel()
