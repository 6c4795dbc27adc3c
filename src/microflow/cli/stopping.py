"""Stopping: the first SIGTERM or Ctrl-C asks for an orderly end, the second is the end."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Coroutine
from datetime import timedelta
from types import FrameType
from typing import Any

INTERRUPTED = 130
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Stopping:
    """Runs work until it ends or is asked to stop; then it is cancelled and has `drain` to end by itself.

    `told` is called when the stop begins. Handlers are Python's, not the loop's: a handler of the user's that blocks
    the loop can be stopped too.
    """

    def __init__(self, *, drain: timedelta, told: Callable[[], None]) -> None:
        self._drain = drain
        self._told = told
        self._requested = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[int] | None = None

    def run(self, work: Callable[[], Coroutine[Any, Any, int]]) -> int:
        """Run work to its end and return its exit code; 0 if it was stopped. Raises what it raises."""
        before = {number: signal.signal(number, self._on_signal) for number in SIGNALS}
        try:
            with asyncio.Runner(loop_factory=loop_factory()) as runner:
                return runner.run(self._run(work))
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def request(self) -> None:
        """Ask for the end, from whichever thread."""
        if self._requested:
            return
        self._requested = True
        # Threads that never end and handlers that block the loop are left for the next start.
        last_word = threading.Timer(self._drain.total_seconds(), _leave, [0])
        last_word.daemon = True
        last_word.start()
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._begin)

    def insist(self) -> None:
        """Ask for the end; if that was done before, end at once."""
        if self._requested:
            _leave(INTERRUPTED)
        self.request()

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.insist()

    async def _run(self, work: Callable[[], Coroutine[Any, Any, int]]) -> int:
        self._loop = asyncio.get_running_loop()
        self._task = self._loop.create_task(work())
        if self._requested:
            self._begin()
        await asyncio.wait([self._task])
        if self._task.cancelled():
            return 0
        return self._task.result()

    def _begin(self) -> None:
        self._told()
        if self._task is not None:
            self._task.cancel()


def request_at_end_of_input(stopping: Stopping) -> None:
    """Ask for the end once nobody can write to stdin any more: whoever started this process has died."""

    def read() -> None:
        with contextlib.suppress(OSError, ValueError):
            while os.read(sys.stdin.fileno(), 1024):
                pass
        stopping.insist()

    threading.Thread(target=read, name="microflow-input", daemon=True).start()


def _leave(code: int) -> None:
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except (OSError, ValueError, RuntimeError):  # nobody reads, or the very line that is being written was interrupted
        pass
    os._exit(code)


def loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop's, where it is installed."""
    try:
        import uvloop
    except ImportError:
        return None
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory
