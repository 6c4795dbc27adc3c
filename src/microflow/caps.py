"""Caps: how much may be parked for a handler, and wait in the outbox for a topic, before what adds to it pauses.

At a cap the topics pause that the handler reads, or that those handlers read who emit to the topic; at half of it they
go on. What is parked is resumed meanwhile, and what waits is published.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from datetime import timedelta

from microflow.emits import classes_of
from microflow.errors import StoreError, StoreGone
from microflow.limits import Limits
from microflow.ports import Clock, Store
from microflow.service import Definition
from microflow.signals import Signal

logger = logging.getLogger("microflow.caps")

COUNT_AT_MOST_EVERY = timedelta(seconds=1)
SHARE_OF_TIME = 20
"""One part in so many is spent on counting, however long it takes."""


class Caps:
    """The caps of a service that are reached. `changed` is called when topics pause or go on."""

    def __init__(
        self, definition: Definition, store: Store, *, clock: Clock, limits: Limits, changed: Callable[[], None]
    ) -> None:
        self._store = store
        self._clock = clock
        self._limits = limits
        self._changed = changed
        self._reads = {handler.name: {each.topic for each in handler.triggers} for handler in definition.handlers}
        self._where = {handler.name: handler.where for handler in definition.handlers}
        self._feeds: dict[str, set[str]] = {}
        for handler in definition.handlers:
            for event in classes_of(handler.emits):
                self._feeds.setdefault(definition.emitted[event], set()).update(self._reads[handler.name])
        self._signal = Signal(clock)
        self._signal.set()
        self.handlers: dict[str, int] = {}
        """Handlers for which as much is parked as may be, and how much that is."""
        self.destinations: dict[str, int] = {}
        """Topics for which as much waits in the outbox as may, and how much that is."""

    @property
    def topics(self) -> frozenset[str]:
        """The topics that pause."""
        if not self.handlers and not self.destinations:
            return frozenset()
        return frozenset().union(
            *(self._reads[name] for name in self.handlers), *(self._feeds[name] for name in self.destinations)
        )

    def topics_of(self, name: str) -> frozenset[str]:
        """The topics that pause because of a handler or a destination."""
        return frozenset(self._reads.get(name) or self._feeds.get(name) or ())

    def look(self) -> None:
        """Something was committed: it may have been parked, or emitted."""
        self._signal.set()

    async def run(self) -> None:
        """Count what changes, about once a second, until cancelled."""
        while True:
            await self._signal.wait(at_most=COUNT_AT_MOST_EVERY if self.handlers or self.destinations else None)
            began = self._clock.monotonic()
            try:
                await self._count()
            except StoreGone:
                raise
            except StoreError as error:
                logger.debug("what is parked and what waits was not counted: %s", error)
            took = self._clock.monotonic() - began
            await self._clock.sleep(max(COUNT_AT_MOST_EVERY, took * SHARE_OF_TIME))

    async def _count(self) -> None:
        topics = self.topics
        parked = await self._store.parking.counts(at_most=self._limits.parked_per_handler)
        self._judge_parked({name: parked.get(name, 0) for name in self._reads})
        if self._feeds:
            waiting = await self._store.outbox.crowded(at_least=self._limits.outbox_per_destination // 2 + 1)
            self._judge_waiting({name: waiting.get(name, 0) for name in self._feeds})
        if self.topics != topics:
            self._changed()

    def _judge_parked(self, counts: Mapping[str, int]) -> None:
        cap = self._limits.parked_per_handler
        for name, count in counts.items():
            if _is_over(self.handlers, name, count, cap=cap):
                logger.warning("%s  %s has room for parked events again, and reads on", self._where[name], name)
            elif name in self.handlers:
                self.handlers[name] = count
            elif count >= cap:
                self.handlers[name] = count
                logger.warning(
                    "%s  %d events are parked for %s, and no more may be: what it reads pauses (%s). See why they "
                    "fail, or what halts their keys: microflow dead-letters",
                    self._where[name],
                    count,
                    name,
                    ", ".join(sorted(self._reads[name])),
                )

    def _judge_waiting(self, counts: Mapping[str, int]) -> None:
        cap = self._limits.outbox_per_destination
        for name, count in counts.items():
            if _is_over(self.destinations, name, count, cap=cap):
                logger.warning("the outbox has room for %s again, and who emits to it reads on", name)
            elif name in self.destinations:
                self.destinations[name] = count
            elif count >= cap:
                self.destinations[name] = count
                logger.warning(
                    "%d events wait in the outbox for %s, and no more may: what those read who emit to it pauses (%s). "
                    "See whether the topic is there and may be written: microflow doctor",
                    count,
                    name,
                    ", ".join(sorted(self._feeds[name])),
                )


def _is_over(reached: dict[str, int], name: str, count: int, *, cap: int) -> bool:
    """Whether a cap that was reached is left: half-way down, so that reading does not start and stop all the time."""
    if name in reached and count <= cap // 2:
        del reached[name]
        return True
    return False
