"""Deadlines: one task cancels every execution that has run too long, because a timer for each would cost more."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

from microflow.ports import Clock
from microflow.signals import Signal


class Deadlines:
    """Cancels tasks that are watched for longer than they may run."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._signal = Signal(clock)
        self._running: dict[asyncio.Task[Any], timedelta] = {}
        self._expired: set[asyncio.Task[Any]] = set()
        self._next: timedelta | None = None

    def watch(self, task: asyncio.Task[Any], at_most: timedelta) -> None:
        end = self._clock.monotonic() + at_most
        self._running[task] = end
        if self._next is None or end < self._next:
            self._signal.set()

    def forget(self, task: asyncio.Task[Any]) -> bool:
        """Stop watching; True if the task was cancelled because its time was over."""
        self._running.pop(task, None)
        was_expired = task in self._expired
        self._expired.discard(task)
        return was_expired

    async def run(self) -> None:
        while True:
            self._next = min(self._running.values(), default=None)
            await self._signal.wait(at_most=None if self._next is None else self._next - self._clock.monotonic())
            now = self._clock.monotonic()
            for task in [task for task, end in self._running.items() if end <= now]:
                del self._running[task]
                self._expired.add(task)
                task.cancel()
