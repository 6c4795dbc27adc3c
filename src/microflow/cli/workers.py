"""Workers: one service in several processes, which share its partitions; one that dies is started again."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import os
import signal
import socket
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus

from microflow.cli.failures import UNREACHABLE, USAGE
from microflow.cli.health import PATIENCE, Answer, answering
from microflow.cli.paths import log_in_words
from microflow.cli.report_lines import instant_text, json_line
from microflow.cli.screen import Screen
from microflow.clocks import SystemClock
from microflow.settings import Settings
from microflow.version import __version__

HOPELESS = frozenset({USAGE, UNREACHABLE})
"""Exit codes of a process that says itself that it cannot run: another try would end in the same way."""
FIRST_PAUSE = 0.2
LONGEST_PAUSE = 5.0
LONG_ENOUGH = 10.0
"""Seconds after which a process that dies had been well: the pauses begin anew."""


class Workers:
    """Runs `command` in `settings.workers` processes until cancelled. They write where this process writes.

    Each answers the health of its own on a socket that this process has made and keeps, so that it can ask them all.
    """

    def __init__(self, command: Sequence[str], settings: Settings, *, screen: Screen) -> None:
        self._command = command
        self._settings = settings
        self._screen = screen
        self._sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(settings.workers)]
        self._processes: dict[int, asyncio.subprocess.Process] = {}
        self._stopping = False

    async def run(self) -> int:
        """Run until cancelled, then let all of them drain; return the exit code of one that cannot run."""
        loop = asyncio.get_running_loop()
        self._tell_header()
        keepers = [loop.create_task(self._keep(0))]
        try:
            with self._health():
                # The first one alone: it makes the tables, and what keeps it from starting is told once.
                await self._until_ready(keepers[0])
                keepers += [loop.create_task(self._keep(number)) for number in range(1, len(self._sockets))]
                await asyncio.wait(keepers, return_when=asyncio.FIRST_COMPLETED)
        finally:
            await self._stop(keepers)
        return max(keeper.result() for keeper in keepers if not keeper.cancelled())

    async def _until_ready(self, keeper: asyncio.Task[int]) -> None:
        port = self._port(0)
        while not keeper.done():
            status, _ = await asyncio.to_thread(_ask, port, "/ready")
            if status == HTTPStatus.OK:
                return
            await asyncio.sleep(0.05)

    async def _keep(self, number: int) -> int:
        """Keep one process running; return its exit code when it has ended for good."""
        loop = asyncio.get_running_loop()
        pause = FIRST_PAUSE
        while True:
            began = loop.time()
            process = self._processes[number] = await self._start(number)
            code = await process.wait()
            if self._stopping or code == 0 or code in HOPELESS:
                return code
            if loop.time() - began > LONG_ENOUGH:
                pause = FIRST_PAUSE
            self._tell_death(number, code, pause)
            await asyncio.sleep(pause)
            pause = min(pause * 2, LONGEST_PAUSE)

    async def _start(self, number: int) -> asyncio.subprocess.Process:
        descriptor = self._sockets[number].fileno()
        return await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "microflow",
            "run",
            *self._command,
            "--workers",
            "1",
            "--health",
            f"fd:{descriptor}",
            "--until-end-of-input",
            env=self._environment(),
            pass_fds=(descriptor,),
            stdin=asyncio.subprocess.PIPE,  # ends when this process does, however it ends
            start_new_session=True,  # Ctrl-C is for this process, which lets them drain
        )

    def _environment(self) -> Mapping[str, str]:
        # They would take a pipe for a program, and this process may have a terminal.
        lines = "json" if self._screen.json else "console"
        colours = {"FORCE_COLOR": "1"} if self._screen.colour else {}
        return {**os.environ, "MICROFLOW_LOG_FORMAT": lines, **colours}

    async def _stop(self, keepers: Sequence[asyncio.Task[int]]) -> None:
        self._stopping = True
        for process in self._processes.values():
            _send(process, signal.SIGTERM)
        await asyncio.gather(*(process.wait() for process in self._processes.values()))
        for keeper in keepers:
            keeper.cancel()
        await asyncio.gather(*keepers, return_exceptions=True)
        for each in self._sockets:
            each.close()

    def _port(self, number: int) -> int:
        port: int = self._sockets[number].getsockname()[1]
        return port

    def _tell_header(self) -> None:
        if not self._screen.json and not self._screen.quiet:
            name = self._screen.style(f"microflow {__version__}", bold=True)
            self._screen.line(f"{name} · {len(self._sockets)} workers · {log_in_words(self._settings.kafka)}")

    def _tell_death(self, number: int, code: int, pause: float) -> None:
        how = f"was killed by signal {-code}" if code < 0 else f"ended with {code}"
        text = f"worker {number + 1} {how}; starting again in {pause:.1f} s"
        if self._screen.json:
            fields = {"at": instant_text(SystemClock().now()), "level": "warning", "message": text}
            self._screen.line(json_line({**fields, "worker": number + 1, "code": code}))
        else:
            self._screen.line(self._screen.style(text, fg="red"))

    # ── health ────────────────────────────────────────────────────────────────────────────────────────────────────

    @contextlib.contextmanager
    def _health(self) -> Iterator[None]:
        if self._settings.health is None:
            yield
            return
        with (
            ThreadPoolExecutor(len(self._sockets)) as askers,
            answering(self._settings.health, lambda path: self._ask_all(path, askers)),
        ):
            yield

    def _ask_all(self, path: str, askers: ThreadPoolExecutor) -> Answer | None:
        """All workers' answers; well only if every one is well."""
        if path not in ("/live", "/ready"):
            return None
        ports = [self._port(number) for number in range(len(self._sockets))]
        answers = list(askers.map(lambda port: _ask(port, path), ports))
        well = all(status == HTTPStatus.OK for status, _ in answers)
        status = HTTPStatus.OK if well else HTTPStatus.SERVICE_UNAVAILABLE
        return status, {path[1:]: well, "workers": [body for _, body in answers]}


def _ask(port: int, path: str) -> Answer:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE + 0.1)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return HTTPStatus(answer.status), json.loads(answer.read())
    except (OSError, ValueError, http.client.HTTPException):
        return HTTPStatus.SERVICE_UNAVAILABLE, {path[1:]: False, "missing": ["the process does not answer"]}
    finally:
        connection.close()


def _send(process: asyncio.subprocess.Process, number: signal.Signals) -> None:
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(number)
