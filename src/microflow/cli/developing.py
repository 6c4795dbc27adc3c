"""Developing: every service in a process of its own, started anew when its files change, and the live tree."""

from __future__ import annotations

import asyncio
import importlib
import signal
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from microflow.cli.flow_tree import FlowTree
from microflow.cli.paths import database_in_words, log_in_words
from microflow.cli.report_lines import json_line
from microflow.cli.screen import Screen
from microflow.cli.supervisor import Child, Line, Supervisor
from microflow.errors import TargetError
from microflow.version import __version__

WATCHED = {".py", ".sql", ".toml"}


class Dev:
    """One run of `dev`, shown on a screen: the live tree for a person, the services' lines for a program."""

    def __init__(self, targets: Sequence[str], *, environment: Mapping[str, str], screen: Screen) -> None:
        self._screen = screen
        self._tree = FlowTree(paint=self._paint)
        self._stopping = asyncio.Event()
        self._supervisor = Supervisor(
            targets,
            folder=Path.cwd(),
            environment=environment,
            on_line=self._hear,
            on_text=self._hear_text,
            on_death=self._hear_death,
            patient=True,
        )

    async def run(self) -> int:
        """Run until Ctrl-C; return the exit code. Raises TargetError if file watching is not installed."""
        folders = {_file_of(child.target).parent for child in self._supervisor.children}
        changes = watch_files(folders, self._stopping)
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, self._stopping.set)
        names = ", ".join(Path(child.target).name for child in self._supervisor.children)
        self._note(f"microflow {__version__} · dev · {names} · reload on change · Ctrl-C stops")
        starting = asyncio.create_task(self._supervisor.start())
        try:
            async for paths in changes:
                for child, path in self._concerned(paths):
                    self._note(f"{child.name}: {path.name} changed, starting anew", colour="bright_black")
                    self._supervisor.restart(child)
        finally:
            starting.cancel()
            await self._supervisor.stop()
        return 0

    def _concerned(self, paths: Sequence[Path]) -> list[tuple[Child, Path]]:
        """Who must start anew, and because of which file: a service's own file is its own, others may be anybody's."""
        children = self._supervisor.children
        stems = {_file_of(child.target).stem: child for child in children}
        concerned: dict[str, tuple[Child, Path]] = {}
        for path in paths:
            owner = stems.get(path.stem.split(".")[0])
            near = [child for child in children if path.is_relative_to(_file_of(child.target).parent)]
            for child in [owner] if owner is not None and owner in near else near:
                concerned.setdefault(child.target, (child, path))
        return list(concerned.values())

    def _hear(self, child: Child, line: Line) -> None:
        if self._screen.json:
            self._screen.line(json_line(line))
        elif "outcome" in line:
            for text in self._tree.lines(line):
                self._screen.line(text)
        elif line.get("message") == "ready":
            self._note(f"{line['service']} ready · {log_in_words(line['log'])} · {database_in_words(line['database'])}")
        elif line.get("message"):
            self._note(f"{child.name}: {line['message']}", colour="bright_black")

    def _hear_text(self, child: Child, text: str) -> None:
        if text:
            self._note(f"{child.name}: {text}" if child.is_ready else text)

    def _hear_death(self, child: Child, code: int) -> None:
        what = f"was killed by signal {-code}" if code < 0 else f"ended with {code}"
        then = "starting again" if code < 0 or child.ready.is_set() else "waiting for a change"
        self._note(f"{child.name} {what}; {then}", colour="red")

    def _note(self, text: str, *, colour: str = "") -> None:
        if self._screen.json:
            self._screen.line(json_line({"message": text.strip()}))
        else:
            self._screen.line(self._paint(text, colour) if colour else text)

    def _paint(self, text: str, colour: str) -> str:
        return self._screen.style(text, fg=colour)


def watch_files(folders: set[Path], stopping: asyncio.Event) -> AsyncIterator[list[Path]]:
    """The Python, SQL and TOML files below these folders that change, a few at a time, until `stopping` is set.

    Raises TargetError if watchfiles is not installed.
    """
    try:
        watchfiles = importlib.import_module("watchfiles")
    except ImportError as cause:
        raise TargetError(
            "dev needs watchfiles to see that a file has changed.", fix="pip install 'microworkflow[dev]'"
        ) from cause
    return _changes(watchfiles, folders, stopping)


async def _changes(watchfiles: Any, folders: set[Path], stopping: asyncio.Event) -> AsyncIterator[list[Path]]:
    def is_ours(change: Any, path: str) -> bool:
        return Path(path).suffix in WATCHED and not any(part.startswith(".") for part in Path(path).parts[1:])

    async for changes in watchfiles.awatch(*folders, watch_filter=is_ours, stop_event=stopping, debounce=200):
        yield sorted(Path(path) for _, path in changes)


def _file_of(target: str) -> Path:
    path = Path(target.partition(":")[0])
    return path.resolve() if path.suffix == ".py" else Path.cwd() / f"{target.partition(':')[0]}.py"
