"""The clock of the machine."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime, timedelta


class SystemClock:
    """Real time, as `microflow.ports.Clock`."""

    def now(self) -> datetime:
        return datetime.now(UTC)

    def monotonic(self) -> timedelta:
        return timedelta(0, time.monotonic())  # by position: it is asked for with every event

    async def sleep(self, duration: timedelta) -> None:
        await asyncio.sleep(duration.total_seconds())
