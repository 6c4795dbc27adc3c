"""Relaying: the outbox of one database reaches the log, and what was published is counted on the screen."""

from __future__ import annotations

import asyncio
import random
from datetime import timedelta

from microflow.addresses import masked
from microflow.cli.console_lines import clock_time
from microflow.cli.identities import with_files
from microflow.cli.look import Look
from microflow.cli.paths import database_in_words, log_in_words
from microflow.cli.report_lines import instant_text, json_line
from microflow.cli.screen import Screen
from microflow.cli.serving import set_up
from microflow.cli.stopping import Stopping
from microflow.clocks import SystemClock
from microflow.connect import connect_store, connect_transport
from microflow.errors import IdentityError, SettingsError
from microflow.hosting import clock_of, process_name
from microflow.ports import Store
from microflow.relay import Relay
from microflow.settings import Settings, read_settings
from microflow.telemetry import place_of, tracing_of
from microflow.version import __version__

NAME = "relay"
"""The service in whose name a database without one is opened: a relay writes nothing that belongs to a service."""
TELL_EVERY = timedelta(seconds=1)


def relay_outbox(*, service: str | None, database: str | None, kafka: str | None, look: Look) -> int:
    """Publish an outbox until stopped; return the exit code."""
    settings = read_settings({"kafka": kafka, "database": database, "log_level": look.log_level})
    if service is None and settings.database is None:
        raise SettingsError(
            "Whose outbox is to be published?",
            why="Every service has a database of its own.",
            fix="microflow relay --database sqlite:///web.db   or   microflow relay --service NAME",
        )
    screen = Screen(look, log_format=settings.log_format)
    set_up(screen, settings)
    relaying = Relaying(service or NAME, settings, screen)
    stopping = Stopping(drain=settings.drain, told=lambda: None)
    screen.gone = stopping.request
    return stopping.run(relaying.run)


class Relaying:
    """A relay at work, and what is shown of it."""

    def __init__(self, service: str, settings: Settings, screen: Screen) -> None:
        self._service = service
        self._settings = settings
        self._screen = screen
        self._clock = SystemClock()

    async def run(self) -> int:
        """Publish until cancelled."""
        transport = await connect_transport(self._settings, clock=self._clock)
        try:
            store = await connect_store(self._settings, service=self._service, clock=self._clock)
            try:
                await self._bind(store, await transport.topics.cluster_id())
                chance = random.SystemRandom().random
                owner = process_name()
                place = place_of(self._settings.kafka, client_id=owner)
                async with (
                    clock_of(store, self._settings.database_of(self._service), self._clock) as clock,
                    tracing_of(
                        self._service, place=place, clock=self._clock, environment=self._settings.opentelemetry
                    ) as tracing,
                ):
                    relay = Relay(store.outbox, transport, clock=clock, owner=owner, chance=chance, tracing=tracing)
                    try:
                        await self._work(relay, store)
                    finally:
                        await relay.release()
            finally:
                await store.close()
        finally:
            await transport.close()
        return 0

    async def _bind(self, store: Store, log: str) -> None:
        try:
            await store.bind(log)
        except IdentityError as error:
            raise with_files(error, self._settings, self._service) from error

    async def _work(self, relay: Relay, store: Store) -> None:
        await self._tell_ready(store)
        async with asyncio.TaskGroup() as group:
            group.create_task(relay.watch())
            group.create_task(relay.run())
            group.create_task(self._count(relay, store))

    async def _tell_ready(self, store: Store) -> None:
        pending = (await store.outbox.status()).pending
        log, database = self._settings.kafka, self._settings.database_of(self._service)
        if self._screen.json:
            fields = {"at": instant_text(self._clock.now()), "level": "info", "message": "ready"}
            self._screen.line(json_line({**fields, "database": masked(database), "log": log, "outbox": pending}))
        elif not self._screen.quiet:
            name = self._screen.style(f"microflow {__version__}", bold=True)
            self._screen.line(f"{name} · relay · {log_in_words(log)} · {database_in_words(database)}")
            self._screen.line(f"ready · outbox {pending} pending")

    async def _count(self, relay: Relay, store: Store) -> None:
        told = 0
        while True:
            await self._clock.sleep(TELL_EVERY)
            if relay.published == told or self._screen.quiet:
                continue
            new, told = relay.published - told, relay.published
            pending = (await store.outbox.status()).pending
            now = self._clock.now()
            if self._screen.json:
                fields = {"at": instant_text(now), "level": "info", "message": "published"}
                self._screen.line(json_line({**fields, "published": new, "outbox": pending}))
            else:
                self._screen.line(f"{clock_time(now)} published {new} · outbox {pending} pending")
