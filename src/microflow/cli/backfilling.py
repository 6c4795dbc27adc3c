"""A backfill on the screen: what would be read, how far it is, and what was handed over."""

from __future__ import annotations

import asyncio
import shlex
from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime

import click

from microflow.backfill import Backfill, Done, Plan, plan_backfill
from microflow.cli.failures import INTERRUPTED
from microflow.cli.look import Look
from microflow.cli.paths import database_in_words, log_in_words
from microflow.cli.probes.log import is_there
from microflow.cli.progress import Progress
from microflow.cli.report_lines import instant_text, json_line
from microflow.cli.screen import Screen
from microflow.cli.service_databases import opened, service_meant
from microflow.cli.serving import set_up
from microflow.cli.typed_targets import load_typed
from microflow.clocks import SystemClock
from microflow.connect import connect_transport, look_at_database
from microflow.errors import IdentityError, MicroflowError, SettingsError, StoreError, TransportError
from microflow.ports import Transport
from microflow.service import build
from microflow.setting_values import span
from microflow.settings import MEMORY, Settings, read_settings


@dataclass(frozen=True, slots=True)
class Order:
    """What was typed: for which handler, from when on, and what is accepted."""

    handler: str
    since: str | None = None
    out_of_order: bool = False
    yes: bool = False


def backfill_handler(
    order: Order, target: str | None, service: str | None, *, flags: Mapping[str, str | None], look: Look
) -> int:
    """Backfill a handler, or without `order.yes` show what would be read; return the exit code."""
    settings = read_settings({**flags, "log_level": look.log_level})
    screen = Screen(look, log_format="console")
    set_up(screen, settings)
    owner = service_meant(target, service, database=flags["database"], settings=settings)
    since = None if order.since is None else read_since(order.since, now=SystemClock().now())
    written: frozenset[str] = frozenset()
    if target is not None:
        definition = build(load_typed(target).service, topics=settings.topics)
        written = frozenset(each.name for each in definition.handlers)
    again = _again(order, target, owner, since, flags)
    return asyncio.run(_Backfilling(order, owner, settings, screen, since=since, again=again).run(written))


def read_since(text: str, *, now: datetime) -> datetime:
    """An instant: a date, a time (of here, unless it says of where), or a span of time before `now`."""
    try:
        return datetime.fromisoformat(text).astimezone()
    except (ValueError, OverflowError):
        pass
    try:
        return now - span(text, "--since")
    except (SettingsError, OverflowError):
        raise SettingsError(
            f"--since {text}: that is no instant.", fix="For example 2026-01-01, 2026-01-01T12:00Z, or 3d."
        ) from None


def _again(
    order: Order, target: str | None, service: str, since: datetime | None, flags: Mapping[str, str | None]
) -> str:
    """What to type to go on where this stops."""
    words = ["microflow", "handlers", "backfill", order.handler, *([target] if target is not None else [])]
    words += [] if target is not None else ["--service", service]
    words += [word for name, value in flags.items() if value is not None for word in (f"--{name}", value)]
    words += [] if since is None else ["--since", instant_text(since)]
    return shlex.join([*words, *(["--out-of-order"] if order.out_of_order else []), "--yes"])


class _Backfilling:
    """One backfill of a service's handler, and what is said about it."""

    def __init__(
        self, order: Order, service: str, settings: Settings, screen: Screen, *, since: datetime | None, again: str
    ) -> None:
        self._order = order
        self._service = service
        self._settings = settings
        self._screen = screen
        self._since = since
        self._again = again
        self._clock = SystemClock()

    async def run(self, written: Collection[str]) -> int:
        async with opened(self._service, self._settings) as store, self._log() as transport:
            plan = await plan_backfill(
                self._service,
                self._order.handler,
                store,
                transport,
                since=self._since,
                written=written,
                now=self._clock.now(),
            )
            if not plan.stretches or not self._order.yes:
                self._show(plan)
                return 0
            if plan.disorder and not self._order.out_of_order:
                raise MicroflowError(
                    f"The order of keys would not be kept: {plan.disorder}.",
                    why="Nothing was done.",
                    fix="To do it all the same, add  --out-of-order",
                )
            with Progress(self._screen, sum(plan.records.values()), label="reading", counted="read") as progress:
                backfill = Backfill(
                    plan,
                    store,
                    transport,
                    clock=self._clock,
                    room=self._settings.limits.parked_per_handler // 2,
                    in_order=not self._order.out_of_order,
                    again=self._again,
                    advanced=_Steps(progress).advanced,
                    waits=self._tell_waits,
                )
                return await self._carry_out(backfill)

    async def _carry_out(self, backfill: Backfill) -> int:
        done = backfill.done
        try:
            await backfill.run()
        except asyncio.CancelledError:
            click.echo(f"stopped: {_events(done.handed_over)} handed over. To go on:  {self._again}", err=True)
            return INTERRUPTED
        except (StoreError, TransportError):
            click.echo(f"{_events(done.handed_over)} handed over before this. To go on:  {self._again}", err=True)
            raise
        self._tell_done(done)
        return 0

    @asynccontextmanager
    async def _log(self) -> AsyncIterator[Transport]:
        """The log that the service's database belongs to."""
        settings, log = self._settings, log_in_words(self._settings.kafka)
        if settings.kafka == MEMORY:
            raise SettingsError("A log in memory can be read by its own process only.", fix="--log local:PATH")
        if not is_there(settings):
            raise TransportError(f"There is no {log}.", fix="--log local:PATH, or --kafka HOST:PORT")
        transport = await connect_transport(settings, clock=self._clock)
        try:
            if (await look_at_database(settings, service=self._service)).cluster_id not in (
                None,
                await transport.topics.cluster_id(),
            ):
                raise IdentityError(
                    f"{database_in_words(settings.database_of(self._service))} belongs to another log than {log}.",
                    why="What that log holds is not what this service has read.",
                    fix="--log ADDRESS",
                )
            yield transport
        finally:
            await transport.close()

    # ── what is said ──────────────────────────────────────────────────────────────────────────────────────────────

    def _show(self, plan: Plan) -> None:
        screen, handler = self._screen, self._order.handler
        if screen.json:
            fields = {"service": self._service, "handler": handler, "backfilled": False, "topics": dict(plan.records)}
            since = None if self._since is None else instant_text(self._since)
            screen.line(json_line({**fields, "since": since, "notes": plan.notes, "disorder": plan.disorder or None}))
            return
        if not plan.stretches:
            screen.line(f"Nothing to backfill: {_nothing(handler, self._since)}.")
            self._show_notes(plan)
            return
        screen.line(f"{self._service} would read again for {handler}:")
        width = max(map(len, plan.records))
        for topic, count in plan.records.items():
            screen.line(f"  {topic:<{width}}  {'1 record' if count == 1 else f'{count:,} records'}")
        self._show_notes(plan)
        add = "--yes"
        if plan.disorder:
            screen.line(f"The order of keys would not be kept: {plan.disorder}.")
            add = "--out-of-order --yes"
        screen.line(f"What of that it has not had would be handed over to it. Nothing was done. To do it, add  {add}")

    def _show_notes(self, plan: Plan) -> None:
        for note in plan.notes:
            self._screen.line(f"Note: {note}.")

    def _tell_waits(self, waiting: int) -> None:
        if self._screen.json:
            self._screen.line(json_line({"message": "waits", "waiting": waiting}))
        elif not self._screen.quiet:
            self._screen.line(f"{waiting:,} events wait for {self._order.handler}: it works them off before more come")

    def _tell_done(self, done: Done) -> None:
        screen, handler = self._screen, self._order.handler
        if screen.json:
            fields = {"service": self._service, "handler": handler, "backfilled": True, "read": done.read}
            counts = {"handed_over": done.handed_over, "known": done.known, "unreadable": done.unreadable}
            screen.line(json_line({**fields, **counts}))
            return
        begins = f": {self._service} begins at once, or when it is started" if done.handed_over else ""
        screen.line(f"{_events(done.handed_over)} handed over to {handler}{begins}.")
        if done.known:
            screen.line(f"{done.known:,} others were handed over before, or it has handled them.")
        if done.unreadable:
            records = "record" if done.unreadable == 1 else "records"
            screen.line(f"{done.unreadable:,} {records} cannot be read; {self._service} gave up what it met of these.")


class _Steps:
    """Turns how much is done in all into how much more it is."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._read = 0

    def advanced(self, done: Done) -> None:
        self._progress.advance(done.read - self._read)
        self._read = done.read


def _nothing(handler: str, since: datetime | None) -> str:
    before = f"of {handler}'s topics the log holds nothing from before it began to read them"
    return before if since is None else f"{before} and since {instant_text(since)}"


def _events(count: int) -> str:
    return "1 event is" if count == 1 else f"{count:,} events are"
