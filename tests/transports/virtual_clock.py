"""A clock that stands still until a test sets it ahead."""

from __future__ import annotations

import asyncio
import heapq
import itertools
from datetime import UTC, datetime, timedelta


class VirtualClock:
    """`now` and `monotonic` move only by `advance`, and so do those who sleep."""

    def __init__(self) -> None:
        self._elapsed = timedelta()
        self._sleepers: list[tuple[timedelta, int, asyncio.Future[None]]] = []
        self._numbers = itertools.count()
        self.step = timedelta()

    def now(self) -> datetime:
        return datetime(2030, 1, 1, tzinfo=UTC) + self._elapsed + self.step

    def monotonic(self) -> timedelta:
        return self._elapsed

    async def sleep(self, duration: timedelta) -> None:
        if duration <= timedelta(0):
            await asyncio.sleep(0)
            return
        woken = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (self._elapsed + duration, next(self._numbers), woken))
        await woken

    async def advance(self, duration: timedelta) -> None:
        """Let time pass, and everybody run who has slept until then."""
        self._elapsed += duration
        while self._sleepers and self._sleepers[0][0] <= self._elapsed:
            _, _, woken = heapq.heappop(self._sleepers)
            if not woken.done():
                woken.set_result(None)
        await run_others()


async def run_others() -> None:
    """Let everybody run until nobody can without time passing or data arriving."""
    for _ in range(50):
        await asyncio.sleep(0)
