"""The clock of a service on a server: the database's time, whatever this machine's calendar says."""

from __future__ import annotations

import asyncio
import random
from datetime import UTC, datetime, timedelta
from pathlib import Path

import asyncpg
import pytest

from microflow import Context, Event, Service, hosting, on
from microflow.cli import relaying
from microflow.cli.look import Look
from microflow.cli.screen import Screen
from microflow.clocks import SystemClock
from microflow.connect import connect_store
from microflow.database_clock import SAMPLE_EVERY, DatabaseClock
from microflow.envelopes import seal_root
from microflow.errors import StoreUnavailable
from microflow.hosting import running
from microflow.ports import Changes, OutboxRow
from microflow.settings import Settings
from tests.asynchronous import asynchronous
from tests.runtime.virtual_loop import LoopClock, virtual

SECOND = timedelta(seconds=1)
SOON = timedelta(milliseconds=1)
HERE = datetime(2030, 1, 1, tzinfo=UTC)


class Server:
    """A server whose time can be set, and which takes its time to answer."""

    def __init__(self) -> None:
        self.ahead = timedelta(0)
        self.answers_after = timedelta(0)
        self.away = False

    def time(self) -> datetime:
        return HERE + timedelta(seconds=asyncio.get_running_loop().time()) + self.ahead

    async def read(self) -> datetime:
        if self.away:
            raise StoreUnavailable("away")
        await asyncio.sleep(self.answers_after.total_seconds() / 2)
        instant = self.time()
        await asyncio.sleep(self.answers_after.total_seconds() / 2)
        return instant


@virtual
async def test_the_time_is_the_servers_and_a_step_of_the_machines_calendar_does_not_matter() -> None:
    server, machine = Server(), LoopClock()
    clock = await DatabaseClock.read(server.read, machine=machine)
    async with clock.kept_right(server.read):
        for step in (timedelta(hours=1), timedelta(days=-400), timedelta(0)):
            machine.ahead = step
            await clock.sleep(7 * SECOND)
            assert abs(clock.now() - server.time()) < SOON


@virtual
async def test_half_the_way_to_the_server_is_counted() -> None:
    server = Server()
    server.answers_after = 2 * SECOND

    clock = await DatabaseClock.read(server.read, machine=LoopClock())

    assert abs(clock.now() - server.time()) < SOON


@virtual
async def test_the_time_follows_a_server_that_was_set_and_never_goes_back() -> None:
    server = Server()
    clock = await DatabaseClock.read(server.read, machine=LoopClock())
    async with clock.kept_right(server.read):
        server.ahead = timedelta(hours=1)
        await clock.sleep(SAMPLE_EVERY + SECOND)
        assert abs(clock.now() - server.time()) < SOON
        latest = clock.now()

        server.ahead -= 30 * SECOND
        await clock.sleep(SAMPLE_EVERY + SECOND)
        assert clock.now() >= latest, "it stands"
        assert clock.now() - latest <= SAMPLE_EVERY + SECOND
        await clock.sleep(40 * SECOND)
        assert abs(clock.now() - server.time()) < SOON


@virtual
async def test_the_time_goes_on_while_the_server_is_away() -> None:
    server = Server()
    clock = await DatabaseClock.read(server.read, machine=LoopClock())
    async with clock.kept_right(server.read):
        server.away = True
        await clock.sleep(timedelta(minutes=10))

        assert abs(clock.now() - server.time()) < SOON


class Tick(Event, key="name", topic="ticks"):
    name: str


class HourAhead(SystemClock):
    """The clock of a machine that somebody has set wrong."""

    def now(self) -> datetime:
        return super().now() + timedelta(hours=1)


@asynchronous
async def test_a_service_on_postgresql_has_the_servers_time(
    postgres_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The production clock is the database's time, sampled, plus the monotonic clock."""
    seen: asyncio.Queue[datetime] = asyncio.Queue()

    @on("Tick", topic="ticks")
    async def look(tick: Tick, context: Context) -> None:
        seen.put_nowait(context.now)

    monkeypatch.setattr(hosting, "SystemClock", HourAhead)
    service = Service("clockwork")
    service.module, service.namespace = __name__, {"look": look}
    settings = Settings(home=tmp_path, kafka=f"local:{tmp_path / 'log.db'}", database=postgres_url)
    async with running(service, settings=settings):
        await publish_one(settings)
        now = await asyncio.wait_for(seen.get(), 30)

    assert abs(now - datetime.now(UTC)) < timedelta(minutes=5)


@asynchronous
async def test_a_relay_beside_it_has_the_servers_time_too(
    postgres_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else each would take the other's leases for ones of another age, and both would publish everything."""
    monkeypatch.setattr(relaying, "SystemClock", HourAhead)
    settings = Settings(home=tmp_path, kafka=f"local:{tmp_path / 'log.db'}", database=postgres_url)
    relay = asyncio.create_task(
        relaying.Relaying("web", settings, Screen(Look(quiet=True), log_format="console")).run()
    )
    connection = await asyncpg.connect(postgres_url)
    try:
        async with asyncio.timeout(30):
            while (ends := await lease_ends(connection)) is None:
                assert not relay.done(), relay.exception()
                await asyncio.sleep(0.01)
    finally:
        await connection.close()
        relay.cancel()
        await asyncio.gather(relay, return_exceptions=True)

    assert abs(ends - datetime.now(UTC)) < timedelta(minutes=5)


async def lease_ends(connection: asyncpg.Connection) -> datetime | None:
    """How long the latest lease lasts; None before there is one."""
    try:
        ends: datetime | None = await connection.fetchval("select max(until) from microflow.relays")
    except asyncpg.UndefinedTableError:
        return None
    return ends


async def publish_one(settings: Settings) -> None:
    """Leave an event in the outbox, which the service's relay publishes."""
    machine = SystemClock()
    sealed = seal_root(
        Tick(name="a"), service="web", topic="ticks", now=machine.now(), random_bits=random.Random(1).getrandbits
    )
    store = await connect_store(settings, service="web", clock=machine)
    try:
        async with store.transaction() as transaction:
            row = OutboxRow(sealed.topic, sealed.key, sealed.value, sealed.headers, machine.now())
            await transaction.write(Changes(outbox=[row]))
    finally:
        await store.close()
