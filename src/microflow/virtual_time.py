"""Virtual time: a clock that stands still until it is told to go on, so that ten minutes pass at once."""

from __future__ import annotations

import asyncio
import heapq
import itertools
from datetime import UTC, datetime, timedelta

START = datetime(2026, 1, 1, tzinfo=UTC)


class VirtualClock:
    """`microflow.ports.Clock` whose time moves by `step_to` only."""

    def __init__(self, start: datetime = START) -> None:
        self._start = start
        self._elapsed = timedelta(0)
        self._sleepers: list[tuple[timedelta, int, asyncio.Future[None]]] = []
        self._order = itertools.count()

    def now(self) -> datetime:
        return self._start + self._elapsed

    def monotonic(self) -> timedelta:
        return self._elapsed

    async def sleep(self, duration: timedelta) -> None:
        if duration <= timedelta(0):
            await asyncio.sleep(0)
            return
        awake: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (self._elapsed + duration, next(self._order), awake))
        await awake

    def next_wake(self) -> timedelta | None:
        """When the next sleeper wakes, on the scale of `monotonic`; None if nobody sleeps."""
        while self._sleepers and self._sleepers[0][2].done():
            heapq.heappop(self._sleepers)
        return self._sleepers[0][0] if self._sleepers else None

    def step_to(self, instant: timedelta) -> None:
        """Move time forward, on the scale of `monotonic`, and wake everybody whose time has come."""
        self._elapsed = max(self._elapsed, instant)
        while (wake := self.next_wake()) is not None and wake <= self._elapsed:
            heapq.heappop(self._sleepers)[2].set_result(None)
