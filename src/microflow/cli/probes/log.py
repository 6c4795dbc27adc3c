"""The log: whether it answers, and what it is."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

from microflow.cli.paths import log_in_words
from microflow.cli.probes.findings import Finding, ok
from microflow.clocks import SystemClock
from microflow.connect import LOCAL, connect_transport
from microflow.errors import MicroflowError
from microflow.ports import Transport
from microflow.settings import MEMORY, Settings

LONG_ENOUGH = 2.5
"""Seconds after which a log that has not answered has no topics to be looked at either."""


class SharedLog:
    """The log that several probes look at: opened once, by whoever needs it first."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._opening: asyncio.Task[Transport] | None = None

    async def get(self) -> Transport:
        """The log, which has answered. Raises TransportError and SettingsError, to everybody who asks."""
        if self._opening is None:
            self._opening = asyncio.create_task(self._open())
        return await asyncio.shield(self._opening)

    async def get_or_none(self) -> Transport | None:
        """The log, or None where the probe that looks at it tells why there is none."""
        try:
            return await asyncio.wait_for(self.get(), LONG_ENOUGH)
        except (MicroflowError, TimeoutError):
            return None

    async def close(self) -> None:
        if self._opening is not None:
            self._opening.cancel()
            done, _ = await asyncio.wait([self._opening])
            for task in done:
                if not task.cancelled() and task.exception() is None:
                    await task.result().close()

    async def _open(self) -> Transport:
        return await connect_transport(self._settings, clock=SystemClock())


def is_there(settings: Settings) -> bool:
    """Whether a log can be looked at without making it."""
    if settings.kafka == MEMORY:
        return False
    return not settings.kafka.startswith(LOCAL) or Path(settings.kafka.removeprefix(LOCAL)).expanduser().exists()


async def look_at_log(log: SharedLog, settings: Settings) -> Sequence[Finding]:
    """Whether the log answers, and what it is."""
    name = log_in_words(settings.kafka)
    if not is_there(settings):
        return [ok(name if settings.kafka == MEMORY else f"{name} (not made yet)")]
    began = time.monotonic()
    transport = await log.get()
    topics = await transport.topics.describe()
    took = timedelta(seconds=time.monotonic() - began)
    brokers = (await transport.inspection.log([])).brokers
    several = f"{brokers} broker{'s' if brokers != 1 else ''}" if not settings.kafka.startswith(LOCAL) else ""
    return [ok(name, several, f"{len(topics)} topics", f"answers in {took / timedelta(milliseconds=1):.0f} ms")]
