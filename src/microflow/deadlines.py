"""Deadlines: one task cancels every execution that has run too long, because a timer for each would cost more."""

from __future__ import annotations

import asyncio
import logging
from datetime import timedelta
from typing import Any

from microflow.handlers import Handler
from microflow.ports import Clock
from microflow.signals import Signal

logger = logging.getLogger("microflow.deadlines")

UNNOTICED = timedelta(milliseconds=100)
"""Who ends so long after the deadline without having been cancelled, ends on a loop that stood still."""


class Deadlines:
    """Cancels tasks that are watched for longer than they may run."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._signal = Signal(clock)
        self._running: dict[asyncio.Task[Any], timedelta] = {}
        self._told: set[str] = set()
        self._expired: set[asyncio.Task[Any]] = set()
        self._next: timedelta | None = None

    def watch(self, task: asyncio.Task[Any], at_most: timedelta) -> None:
        end = self._clock.monotonic() + at_most
        self._running[task] = end
        if self._next is None or end < self._next:
            self._signal.set()

    def forget(self, task: asyncio.Task[Any], handler: Handler) -> bool:
        """Stop watching the task of a handler; True if it was cancelled because its time was over."""
        end = self._running.pop(task, None)
        if end is not None and handler.is_async and (over := self._clock.monotonic() - end) > UNNOTICED:
            self._tell_blocked(handler, over)
        was_expired = task in self._expired
        self._expired.discard(task)
        return was_expired

    def _tell_blocked(self, handler: Handler, over: timedelta) -> None:
        if handler.name in self._told:
            return
        self._told.add(handler.name)
        logger.warning(
            "%s  %s ended %.1f s after its deadline and could not be cancelled: the event loop stood still. Whatever "
            "blocks (time.sleep, requests) belongs into a plain `def` handler, which runs in a thread",
            handler.where,
            handler.name,
            over.total_seconds(),
        )

    async def run(self) -> None:
        while True:
            self._next = min(self._running.values(), default=None)
            await self._signal.wait(at_most=None if self._next is None else self._next - self._clock.monotonic())
            now = self._clock.monotonic()
            for task in [task for task, end in self._running.items() if end <= now]:
                del self._running[task]
                self._expired.add(task)
                task.cancel()
