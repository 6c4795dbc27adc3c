"""A supervisor: services as child processes, their lines read, those that die started again."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from microflow.cli.failures import as_text
from microflow.errors import MicroflowError

RESTART_AFTER = 0.2
LONGEST_LINE = 16 * 1024 * 1024

Line = Mapping[str, Any]


@dataclass(slots=True)
class Child:
    """One service in a process of its own. `environment` is added to the supervisor's."""

    target: str
    environment: dict[str, str] = field(default_factory=dict)
    process: asyncio.subprocess.Process | None = None
    wanted: bool = True
    ready: asyncio.Event = field(default_factory=asyncio.Event)
    again: asyncio.Event = field(default_factory=asyncio.Event)
    is_ready: Line | None = None

    @property
    def name(self) -> str:
        """The service's name, once it has said it; before, its target."""
        return str(self.is_ready["service"]) if self.is_ready else Path(self.target).stem

    def send(self, number: signal.Signals) -> None:
        """Send a signal, if there is somebody to get it."""
        if self.process is not None and self.process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self.process.send_signal(number)


class Supervisor:
    """Runs targets, each as `microflow run TARGET` in its own process, until `stop`.

    `on_line` is given every JSON line of every child, `on_text` what else they say, `on_death` a child that ended
    by itself, with its exit code (negative: the signal that killed it). A child that could not start would fail
    again: it sets `failed`, or, with `patient`, waits for `restart`, because somebody is mending it.
    """

    def __init__(
        self,
        targets: Sequence[str],
        *,
        folder: Path,
        environment: Mapping[str, str],
        on_line: Callable[[Child, Line], None],
        on_text: Callable[[Child, str], None],
        on_death: Callable[[Child, int], None],
        patient: bool = False,
    ) -> None:
        self.children = [Child(target) for target in targets]
        self.failed = asyncio.Event()
        self._folder = folder
        self._environment = dict(environment)
        self._on_line = on_line
        self._on_text = on_text
        self._on_death = on_death
        self._patient = patient
        self._keepers: list[asyncio.Task[None]] = []

    async def start(self) -> bool:
        """Start all of them; return once all are ready, or False as soon as one cannot be."""
        self._keepers = [asyncio.create_task(self._keep(child)) for child in self.children]
        waits = [asyncio.create_task(self._all_ready()), asyncio.create_task(self._one_failed())]
        _, pending = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        for wait in pending:
            wait.cancel()
        return not self.failed.is_set()

    def restart(self, child: Child) -> None:
        """Let a child drain and start it anew; one that could not start tries again."""
        child.again.set()
        child.send(signal.SIGTERM)

    async def stop(self) -> None:
        """Let all of them drain, and wait until they have ended."""
        for child in self.children:
            child.wanted = False
            child.again.set()
            child.send(signal.SIGTERM)
        await asyncio.gather(*self._keepers, return_exceptions=True)

    async def _all_ready(self) -> None:
        for child in self.children:
            await child.ready.wait()

    async def _one_failed(self) -> None:
        await self.failed.wait()

    async def _keep(self, child: Child) -> None:
        while child.wanted:
            child.process = process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "microflow",
                "run",
                child.target,
                "--json",
                "--until-end-of-input",
                cwd=self._folder,
                env={**os.environ, **self._environment, **child.environment},
                stdin=asyncio.subprocess.PIPE,  # ends when this process does, however it ends
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                limit=LONGEST_LINE,
                # Ctrl-C is for the supervisor, who lets its children drain; a terminal would send it to them as well.
                start_new_session=True,
            )
            await asyncio.gather(self._read_lines(child, process), self._read_text(child, process))
            code = await process.wait()
            if not child.wanted:
                return
            could_start = child.ready.is_set()
            child.ready.clear()
            if code != 0:
                self._on_death(child, code)
            if could_start or code < 0:
                await asyncio.sleep(RESTART_AFTER)
            elif self._patient:
                await child.again.wait()
            else:
                child.wanted = False
                self.failed.set()
            child.again.clear()

    async def _read_lines(self, child: Child, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        async for raw in process.stdout:
            try:
                line = json.loads(raw)
            except ValueError:
                line = None
            if not isinstance(line, dict):
                self._on_text(child, raw.decode(errors="replace").rstrip())
                continue
            if line.get("message") == "ready":
                child.is_ready = line
                child.ready.set()
            self._on_line(child, line)

    async def _read_text(self, child: Child, process: asyncio.subprocess.Process) -> None:
        assert process.stderr is not None
        async for raw in process.stderr:
            self._on_text(child, _for_a_person(raw.decode(errors="replace").rstrip()))


def _for_a_person(text: str) -> str:
    """An error that a child told as JSON, in its four parts; any other text as it is."""
    try:
        told = json.loads(text)
        return as_text(MicroflowError(told["what"], where=told["where"], why=told["why"], fix=told["fix"]))
    except (ValueError, TypeError, KeyError):
        return text
