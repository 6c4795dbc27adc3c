"""Reaching a log and a database that may not be up yet: in a system that starts, nobody knows who comes first."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import TypeVar

from microflow.connect import connect_store, connect_transport, look_at_database
from microflow.errors import LogUnreachable, StoreUnreachable
from microflow.ports import Clock, DatabaseState, Store, Transport
from microflow.settings import Settings

logger = logging.getLogger("microflow.reaching")

FIRST_PAUSE = timedelta(milliseconds=250)
LONGEST_PAUSE = timedelta(seconds=2)

T = TypeVar("T")


class Reaching:
    """Opens what settings name, and tries again while nobody answers there: for `settings.wait` in all, from now on.

    What answers and refuses (a wrong password, a database of another version) is not tried again.
    """

    def __init__(self, settings: Settings, *, clock: Clock) -> None:
        self._settings = settings
        self._clock = clock
        self._began = clock.monotonic()

    async def log(self) -> Transport:
        """The log, which has answered. Raises TransportError, LogUnreachable once the time is over."""
        return await self._insist(lambda: connect_transport(self._settings, clock=self._clock))

    async def store(self, service: str) -> Store:
        """The database of a service. Raises StoreError, StoreUnreachable once the time is over."""
        return await self._insist(lambda: connect_store(self._settings, service=service, clock=self._clock))

    async def state(self, service: str) -> DatabaseState:
        """What the database of a service says of itself. Raises StoreError, StoreUnreachable once the time is over."""
        return await self._insist(lambda: look_at_database(self._settings, service=service))

    async def _insist(self, step: Callable[[], Awaitable[T]]) -> T:
        pause = FIRST_PAUSE
        tries = 0
        while True:
            tries += 1
            try:
                return await step()
            except (LogUnreachable, StoreUnreachable) as error:
                waited = self._clock.monotonic() - self._began
                left = self._settings.wait - waited
                if left <= timedelta(0):
                    raise _with_tries(error, tries, waited) from error
                if tries == 1:
                    logger.warning("%s Trying again for %.0f s.", error.what, left.total_seconds())
            await self._clock.sleep(min(pause, left))
            pause = min(pause * 2, LONGEST_PAUSE)


def _with_tries(
    error: LogUnreachable | StoreUnreachable, tries: int, waited: timedelta
) -> LogUnreachable | StoreUnreachable:
    """The error as it is told at last: `… (connection refused; tried 8 times in 30 s).`"""
    if tries == 1:
        return error
    tried = f"tried {tries} times in {waited.total_seconds():.0f} s"
    what = error.what.removesuffix(".")
    what = f"{what.removesuffix(')')}; {tried})." if what.endswith(")") else f"{what} ({tried})."
    return type(error)(what, where=error.where, why=error.why, fix=error.fix)
