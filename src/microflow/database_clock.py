"""The clock of a service whose database is a server: the server's time, sampled, plus this machine's monotonic clock.

All processes of a service have the same time this way, and none has its machine's, which may be wrong and may step.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import datetime, timedelta

from microflow.errors import StoreError
from microflow.ports import Clock

logger = logging.getLogger("microflow.clock")

SAMPLE_EVERY = timedelta(seconds=10)
SAMPLES_AT_ONCE = 3
TELL_ABOVE = timedelta(seconds=1)

ReadTime = Callable[[], Awaitable[datetime]]


class DatabaseClock:
    """`microflow.ports.Clock` by the time that a server tells, on the monotonic clock of the machine.

    `now` never goes back: when the server's time does, `now` stands until that time has come again.
    """

    def __init__(self, machine: Clock, first: datetime, *, at: timedelta) -> None:
        self._machine = machine
        self._instant = first
        self._at = at
        self._latest = first

    @classmethod
    async def read(cls, read_time: ReadTime, *, machine: Clock) -> DatabaseClock:
        """Begin with a sample. Raises StoreError."""
        instant, at = await _sample(read_time, machine)
        return cls(machine, instant, at=at)

    def now(self) -> datetime:
        instant = self._instant + (self._machine.monotonic() - self._at)
        if instant > self._latest:
            self._latest = instant
        return self._latest

    def monotonic(self) -> timedelta:
        return self._machine.monotonic()

    async def sleep(self, duration: timedelta) -> None:
        await self._machine.sleep(duration)

    @asynccontextmanager
    async def kept_right(self, read_time: ReadTime) -> AsyncIterator[None]:
        """Go by the server's time while the block runs, whatever becomes of either clock."""
        keeping = asyncio.get_running_loop().create_task(self._keep(read_time))
        try:
            yield
        finally:
            keeping.cancel()

    async def _keep(self, read_time: ReadTime) -> None:
        while True:
            await self._machine.sleep(SAMPLE_EVERY)
            try:
                instant, at = await _sample(read_time, self._machine)
            except StoreError as error:  # the last sample is good enough meanwhile
                logger.debug("the database does not tell its time: %s", error)
                continue
            jump = instant - (self._instant + (at - self._at))
            if abs(jump) > TELL_ABOVE:
                logger.warning("the database's clock has moved by %+.1f s", jump.total_seconds())
            self._instant, self._at = instant, at


async def _sample(read_time: ReadTime, machine: Clock) -> tuple[datetime, timedelta]:
    """The server's time and the moment at which it was that: half-way through the quickest of a few round trips."""
    samples = []
    for _ in range(SAMPLES_AT_ONCE):
        before = machine.monotonic()
        instant = await read_time()
        took = machine.monotonic() - before
        samples.append((took, instant, before + took / 2))
    _, instant, at = min(samples)
    return instant, at
