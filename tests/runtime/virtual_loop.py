"""An event loop that never waits: when nothing is left to do, its time jumps to the next timer."""

from __future__ import annotations

import asyncio
import functools
import selectors
import threading
import time
from collections.abc import Callable, Coroutine, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, ParamSpec

P = ParamSpec("P")

START = datetime(2026, 1, 1, tzinfo=UTC)
LONGEST_STANDSTILL = 10.0


class VirtualLoop(asyncio.SelectorEventLoop):
    """Time stands still while anything can be done, a thread of a handler included, unless `jumps_over_threads`."""

    def __init__(self) -> None:
        self.elapsed = 0.0
        self.jumps_over_threads = False
        super().__init__(_Selector(self))

    def time(self) -> float:
        return self.elapsed


class _Selector(selectors.BaseSelector):
    def __init__(self, loop: VirtualLoop) -> None:
        self._loop = loop
        self._real = selectors.DefaultSelector()
        self._standing_since: float | None = None

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = self._real.select(0)
        if ready or (timeout is not None and timeout <= 0):
            self._standing_since = None
            return ready
        threads = any(each.name.startswith("microflow-") for each in threading.enumerate())
        if timeout is None or (threads and not self._loop.jumps_over_threads):
            self._standing_since = self._standing_since or time.monotonic()
            if time.monotonic() - self._standing_since > LONGEST_STANDSTILL:
                raise AssertionError("Nothing will ever happen any more.")
            return self._real.select(0.005)
        self._loop.elapsed += max(timeout, 1e-6)
        return []

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        return self._real.register(fileobj, events, data)

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        return self._real.unregister(fileobj)

    def modify(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        return self._real.modify(fileobj, events, data)

    def get_key(self, fileobj: Any) -> selectors.SelectorKey:
        return self._real.get_key(fileobj)

    def get_map(self) -> Mapping[Any, selectors.SelectorKey]:
        return self._real.get_map()

    def close(self) -> None:
        self._real.close()


class LoopClock:
    """`microflow.ports.Clock` on the time of the running `VirtualLoop`; `ahead` sets the calendar, not the timers."""

    def __init__(self) -> None:
        self.ahead = timedelta(0)

    def now(self) -> datetime:
        return START + self.monotonic() + self.ahead

    def monotonic(self) -> timedelta:
        return timedelta(seconds=asyncio.get_running_loop().time())

    async def sleep(self, duration: timedelta) -> None:
        await asyncio.sleep(duration.total_seconds())


def virtual(test: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, None]:
    """Run an `async def` test to its end in virtual time. Tasks that it leaves behind are a failure."""

    @functools.wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        with asyncio.Runner(loop_factory=VirtualLoop) as runner:
            runner.run(test(*args, **kwargs))

    return run


def jump_over_threads() -> None:
    """Let time pass although a handler's thread is running."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualLoop)
    loop.jumps_over_threads = True
