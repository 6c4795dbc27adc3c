"""What the runtime asks of a clock."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Protocol


class Clock(Protocol):
    """Time, handed in: the runtime never takes it from elsewhere, so it can be driven in virtual time."""

    def now(self) -> datetime:
        """The instant, in UTC and aware, as all processes of a service have it."""
        ...

    def monotonic(self) -> timedelta:
        """Time since some fixed moment; never goes back, whatever happens to `now`."""
        ...

    async def sleep(self, duration: timedelta) -> None:
        """Return once `duration` has passed; a duration of zero or less only lets others run."""
        ...
