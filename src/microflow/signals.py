"""A signal: wakes the one task that waits for it, and is remembered until then."""

from __future__ import annotations

import asyncio
from datetime import timedelta

from microflow.ports import Clock


class Signal:
    """Set as often as you like; each `wait` takes all that was set before it returned."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._event = asyncio.Event()

    def set(self) -> None:
        self._event.set()

    @property
    def is_set(self) -> bool:
        return self._event.is_set()

    def clear(self) -> None:
        """Forget that it was set."""
        self._event.clear()

    async def wait(self, *, at_most: timedelta | None = None) -> None:
        """Return once the signal is set, or after `at_most`."""
        if at_most is not None and not self._event.is_set():
            timer = asyncio.get_running_loop().create_task(self._set_after(at_most))
            try:
                await self._event.wait()
            finally:
                timer.cancel()
        else:
            await self._event.wait()
        self._event.clear()

    async def _set_after(self, duration: timedelta) -> None:
        await self._clock.sleep(duration)
        self._event.set()
