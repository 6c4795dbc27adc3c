"""Sparing: an event that three processes die with, alone in hand, is given up (semantics 6). Here processes die of
what the harness does to them; so it spares an event that two have died with."""

from __future__ import annotations

from microflow.faults import FaultPoint, Reach
from microflow.worker import Worker

MOST_DEATHS = 2


class Sparing:
    """Faults that do not see what a worker passes while it has such an event to handle."""

    def __init__(self, reach: Reach) -> None:
        self._reach = reach
        self.worker: Worker | None = None

    def __call__(self, point: FaultPoint) -> None:
        assert self.worker is not None
        if max(self.worker._caution._crashes.values(), default=0) < MOST_DEATHS:
            self._reach(point)
