"""Serving: the services of `microflow run`, from their targets to the last line before the process ends."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

from microflow.addresses import masked
from microflow.cli.colours import wants_colour
from microflow.cli.console_lines import console_line, in_words
from microflow.cli.garbage import collect_seldom
from microflow.cli.health import Vitals, answering
from microflow.cli.identities import with_files
from microflow.cli.look import Look
from microflow.cli.paths import database_in_words, log_in_words
from microflow.cli.report_lines import instant_text, json_line, milliseconds, report_fields
from microflow.cli.screen import Screen
from microflow.cli.stopping import Stopping, request_at_end_of_input
from microflow.cli.typed_targets import load_typed
from microflow.cli.workers import Workers
from microflow.clocks import SystemClock
from microflow.connect import check_database
from microflow.errors import IdentityError, SettingsError, TargetError
from microflow.hosting import Running, running
from microflow.logs import set_up_logging
from microflow.readiness import Readiness
from microflow.reports import Report
from microflow.service import Definition, build
from microflow.settings import MEMORY, Settings, read_settings
from microflow.targets import Target
from microflow.version import __version__

logger = logging.getLogger("microflow.run")

TROUBLE = frozenset({"retry", "dead"})
MOST_READY_LINES = 6
WIDEST_NAME = 40
FOR_THE_SERVICES = 0.9
"""The share of `--drain` that services may use; the rest is for leaving the process."""


@dataclass(frozen=True, slots=True)
class Served:
    """A target whose service can be built."""

    target: Target
    definition: Definition


def serve(targets: Sequence[str], *, flags: Mapping[str, str | None], look: Look, supervised: bool = False) -> int:
    """Run the services that targets name until they are told to stop; return the exit code.

    A `supervised` process is told by the end of its input, too.
    """
    settings = read_settings({**flags, "log_level": look.log_level})
    screen = Screen(look, log_format=settings.log_format)
    set_up(screen, settings)
    _warn_of_namesake()
    stopping = Stopping(drain=settings.drain, told=lambda: _tell_stop(screen, settings, quiet=supervised))
    screen.gone = stopping.request
    if settings.workers > 1:
        _refuse_memory(settings)
        command = [*targets, *_typed(flags), *look.typed]
        return stopping.run(Workers(command, settings, screen=screen).run)
    served = load(targets, settings)
    collect_seldom()
    if supervised:
        request_at_end_of_input(stopping)
    with _in_one_memory(settings, served) as where:
        inner = replace(where, drain=settings.drain * FOR_THE_SERVICES)
        serving = Serving(served, inner, screen=screen, supervised=supervised)
        return stopping.run(serving.run)


def _typed(flags: Mapping[str, str | None]) -> list[str]:
    """The flags as they were typed, but for those that a worker is given its own of."""
    return [
        word
        for name, value in flags.items()
        if value is not None and name not in ("workers", "health")
        for word in (f"--{name}", value)
    ]


def _refuse_memory(settings: Settings) -> None:
    if settings.kafka == MEMORY:
        raise SettingsError(
            f"A log in memory is one process's, and --workers {settings.workers} makes several.",
            fix="Leave --workers out, or keep the log:  --log local:PATH",
        )


def set_up(screen: Screen, settings: Settings) -> None:
    """Send logging where the screen's lines go: into the same JSON, or for a person to stderr."""
    write = screen.line if screen.json else _write_to_stderr
    colour = not screen.json and wants_colour(sys.stderr)
    set_up_logging(write, level=settings.log_level, as_json=screen.json, colour=colour, all_frames=screen.verbose)


def _warn_of_namesake() -> None:
    try:
        distribution("microflow")
    except PackageNotFoundError:
        return
    logger.warning(
        "the package microflow, which is somebody else's, is installed beside microworkflow: both write into one "
        "folder. pip uninstall microflow, then pip install --force-reinstall microworkflow"
    )


def load(targets: Sequence[str], settings: Settings) -> list[Served]:
    """Load targets and build their services. Raises TargetError for two that are one, or have one name."""
    served: list[Served] = []
    for text in targets:
        target = load_typed(text)
        definition = build(target.service, topics=settings.topics)
        for other in served:
            _refuse_twin(target, definition, other)
        served.append(Served(target, definition))
    return served


def _refuse_twin(target: Target, definition: Definition, other: Served) -> None:
    same = definition.where == other.definition.where and definition.name == other.definition.name
    if same:
        typed = (
            target.text if target.text == other.target.text else f"{target.text} and {other.target.text} are one: it"
        )
        raise TargetError(
            f"{typed} is given twice.",
            why="Two copies in one process would share its partitions and gain nothing.",
            fix="For more throughput run it in several processes; in one, raise --concurrency.",
        )
    if definition.name == other.definition.name:
        raise TargetError(
            f"Two services are called {definition.name}: {target.text} and {other.target.text}.",
            where=definition.where,
            why=f"The other one is at {other.definition.where}. The name is a service's consumer group and database.",
            fix=f'service = Service("{definition.name}-2")',
        )


class Serving:
    """Services at work in this process, and what is shown of them."""

    def __init__(
        self, served: Sequence[Served], settings: Settings, *, screen: Screen, supervised: bool = False
    ) -> None:
        self._served = served
        self._settings = settings
        self._screen = screen
        self._supervised = supervised
        self._running: dict[str, Running] = {}
        self._leaving: set[str] = set()
        self._health_port: int | None = None
        self._clock = SystemClock()
        self._started = time.monotonic()
        self._ready = 0
        self._hinted: set[tuple[str, str]] = set()
        names = [f"{each.definition.name}.{handler.name}" for each in served for handler in each.definition.handlers]
        self._width = min(WIDEST_NAME, max(len(name) for name in names))

    async def run(self) -> int:
        """Run until cancelled; raises why the first service that cannot go on cannot."""
        self._tell_header()
        loop = asyncio.get_running_loop()
        if self._settings.health is None:
            return await self._run_all(loop)
        with answering(self._settings.health, Vitals(loop, self._readiness)) as self._health_port:
            return await self._run_all(loop)

    async def _run_all(self, loop: asyncio.AbstractEventLoop) -> int:
        tasks = [loop.create_task(self._run_one(each)) for each in self._served]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        for task in tasks:
            if not task.cancelled() and (error := task.exception()) is not None:
                raise error
        return 0

    async def _run_one(self, served: Served) -> None:
        try:
            await self._run_until_ended(served)
        except IdentityError as error:
            raise with_files(error, self._settings, served.definition.name) from error

    async def _run_until_ended(self, served: Served) -> None:
        async with running(
            served.target.service,
            settings=self._settings,
            observe=self._observe,
            clock=self._clock,
            migrate=self._settings.migrate == "auto",
            is_alone=len(self._served) == 1,
        ) as it:
            self._running[it.name] = it
            try:
                await self._tell_ready(it)
                await it.ended()
            finally:
                self._leaving.add(it.name)

    async def _readiness(self) -> dict[str, dict[str, Any]]:
        return {each.definition.name: await self._readiness_of(each.definition.name) for each in self._served}

    async def _readiness_of(self, service: str) -> dict[str, Any]:
        if service in self._leaving:
            readiness = Readiness(("it is stopping",))
        elif service in self._running:
            readiness = await self._running[service].readiness()
        else:
            readiness = Readiness(("it is not in its group yet",))
        return {"ready": readiness.ready, "missing": readiness.missing, "limited": readiness.limited}

    # ── what is shown ─────────────────────────────────────────────────────────────────────────────────────────────

    def _observe(self, report: Report) -> None:
        if self._screen.quiet and report.outcome not in TROUBLE:
            return
        at = self._clock.now()
        if self._screen.json:
            self._screen.line(json_line(report_fields(report, at=at)))
            return
        # Said once for each handler: a hundred dead letters are no hundred things to learn.
        hint = report.outcome == "dead" and (report.service, report.handler) not in self._hinted
        if hint:
            self._hinted.add((report.service, report.handler))
        if line := console_line(report, at=at, screen=self._screen, width=self._width, hint=hint):
            self._screen.line(line)

    def _tell_header(self) -> None:
        if self._screen.json or self._screen.quiet or self._supervised:
            return
        name = self._screen.style(f"microflow {__version__}", bold=True)
        parts = [name, log_in_words(self._settings.kafka)]
        if len(self._served) == 1:
            service = self._served[0].definition.name
            parts[1:1] = [service]
            parts.append(database_in_words(self._settings.database_of(service)))
        self._screen.line(" · ".join(parts))

    async def _tell_ready(self, it: Running) -> None:
        standing = await it.worker.standing()
        took = timedelta(seconds=time.monotonic() - self._started)
        self._ready += 1
        if self._screen.json:
            fields: dict[str, Any] = {
                "at": instant_text(self._clock.now()),
                "level": "info",
                "message": "ready",
                "service": it.name,
                "database": masked(it.database),
                "log": it.log,
                "handlers": len(it.definition.handlers),
                "partitions": standing.owned,
                "of_partitions": standing.partitions,
                "outbox": standing.pending,
                "took_ms": milliseconds(took),
            }
            if self._health_port is not None:
                fields["health"] = self._health_port
            self._screen.line(json_line(fields))
            return
        if self._screen.quiet:
            return
        handlers = len(it.definition.handlers)
        facts = [
            f"group {it.name}",
            f"{handlers} handler{'s' if handlers != 1 else ''}",
            f"{standing.owned}/{standing.partitions} partitions",
            f"outbox {standing.pending} pending",
        ]
        if len(self._served) == 1:
            self._screen.line(" · ".join([f"ready in {in_words(took)}", *facts]))
        elif len(self._served) <= MOST_READY_LINES:
            database = database_in_words(it.database)
            self._screen.line(" · ".join([f"{it.name} ready in {in_words(took)}", database, *facts[1:]]))
        elif self._ready == len(self._served):
            self._screen.line(f"{self._ready} services ready in {in_words(took)}")


def _tell_stop(screen: Screen, settings: Settings, *, quiet: bool) -> None:
    if quiet:
        return  # whoever started this process says it
    if screen.json:
        fields = {"at": instant_text(SystemClock().now()), "level": "info", "message": "stopping"}
        screen.line(json_line(fields))
    elif not screen.quiet:
        screen.line(f"stopping: what runs may finish, for at most {in_words(settings.drain)} (Ctrl-C ends at once)")


def _write_to_stderr(line: str) -> None:
    with contextlib.suppress(BrokenPipeError):
        sys.stderr.write(f"{line}\n")
        sys.stderr.flush()


@contextlib.contextmanager
def _in_one_memory(settings: Settings, served: Sequence[Served]) -> Iterator[Settings]:
    """Where services are that share this process: with a log in memory they share that too, in files that are gone
    with it."""
    for each in served:
        check_database(settings.database_of(each.definition.name))  # before anything is made
    if settings.kafka != MEMORY or len(served) == 1:
        yield settings
        return
    with tempfile.TemporaryDirectory(prefix="microflow-") as folder:
        yield replace(settings, home=Path(folder), kafka=f"local:{folder}/log.db")
