"""A server's process, on a leash: it never outlives the process that started it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

LEASH = Path(__file__).with_name("leash.py")
LINES_OF_LOG = 12


class ServerFailed(Exception):
    """A server did not start, or did not do what it was told; the message ends with its log."""


class Process:
    """A running command. When this process ends, however it does, the command gets `at_the_end`.

    What it prints goes to the end of the file `log`.
    """

    def __init__(
        self,
        command: Sequence[str | Path],
        *,
        log: Path,
        at_the_end: signal.Signals = signal.SIGKILL,
        user: str = "",
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.log = log
        with log.open("ab") as output:
            self._leash = subprocess.Popen(
                [
                    *(sys.executable, "-I", "-S", LEASH),
                    *(str(os.getpid()), str(int(at_the_end)), user),
                    *command,
                ],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=output,
                env={**os.environ, **(environment or {})},
            )
        assert self._leash.stdout is not None
        with self._leash.stdout as said:
            first = said.readline()
        if not first:
            self._wait_for_leash()
            raise ServerFailed(f"{command[0]} cannot be run:\n{self.last_lines()}")
        self.pid = int(first)

    @property
    def running(self) -> bool:
        """False once the command has ended."""
        if self._leash.poll() is None:
            return True
        self._wait_for_leash()
        return False

    def send(self, number: signal.Signals) -> None:
        """Send the command a signal; nothing happens if it has ended."""
        if self.running:
            os.kill(self.pid, number)

    def wait(self, *, seconds: float) -> None:
        """Return when the command has ended. Raises TimeoutError."""
        try:
            self._wait_for_leash(seconds)
        except subprocess.TimeoutExpired:
            raise TimeoutError(f"process {self.pid} has not ended in {seconds} s:\n{self.last_lines()}") from None

    def kill(self) -> None:
        """End the command now; nothing of it is left when this returns."""
        self.send(signal.SIGKILL)
        self.wait(seconds=10)

    def last_lines(self) -> str:
        """The end of its log, indented, for a message."""
        lines = self.log.read_text(errors="replace").splitlines()[-LINES_OF_LOG:]
        return "\n".join(f"    {line}" for line in lines)

    def _wait_for_leash(self, seconds: float | None = None) -> None:
        self._leash.wait(seconds)
        if self._leash.stdin is not None:
            self._leash.stdin.close()


def end_with_descendants(process: subprocess.Popen[bytes], *, seconds: float) -> None:
    """End a command with all that it has started: by SIGTERM, and what is left of it after so long by SIGKILL."""
    pids = {process.pid, *_descendants(process.pid)}
    _signal(pids, signal.SIGTERM)
    deadline = time.monotonic() + seconds
    while (pids := pids & _parents().keys()) and time.monotonic() < deadline:
        process.poll()
        time.sleep(0.05)
    _signal(pids, signal.SIGKILL)
    process.wait()


def _signal(pids: set[int], number: signal.Signals) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def _descendants(pid: int) -> set[int]:
    parents = _parents()
    found = {pid}
    while more := {each for each, parent in parents.items() if parent in found} - found:
        found |= more
    return found - {pid}


def _parents() -> dict[int, int]:
    """All processes that have not ended, each with its parent."""
    listed = subprocess.run(["ps", "-A", "-o", "pid=,ppid=,stat="], capture_output=True, text=True, check=True).stdout
    lines = (line.split() for line in listed.splitlines())
    return {int(pid): int(parent) for pid, parent, state, *_ in lines if not state.startswith("Z")}


def wait_until(condition: Callable[[], bool], *, seconds: float, what: str, process: Process | None = None) -> None:
    """Return once the condition holds. Raises ServerFailed after a time, or when the process has ended before."""
    deadline = time.monotonic() + seconds
    while not condition():
        log = f":\n{process.last_lines()}" if process else ""
        if process is not None and not process.running:
            raise ServerFailed(f"{what}: it has ended{log}")
        if time.monotonic() > deadline:
            raise ServerFailed(f"{what}: not within {seconds} s{log}")
        time.sleep(0.02)
