"""Caution: after an owner that did not leave in good order, events are handled one at a time, each under a mark.

An event may end the process that handles it: a crash in a C library, the end of the memory. Nobody is left to count
that as an attempt. So whoever comes next goes with care through all that the process before can have had in hand: a
mark is committed before an event is decoded, and goes with the event's end. Who takes a partition over and finds a
mark counts a crash; the third makes the event a dead letter.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import islice

from microflow.deliveries import Execution, Failed
from microflow.errors import Crashed, Fenced, RegistryChanged
from microflow.ports import Changes, Mark, Record, TopicPartition
from microflow.runtime import Runtime
from microflow.signals import Signal

logger = logging.getLogger("microflow.caution")

MOST_CRASHES = 3
SILENCE = timedelta(seconds=5)
"""When nothing has come for so long there is nothing more: the last offsets of a log need not hold records."""

WITH_CARE = "what an ended process had in hand is handled one at a time"
WITHOUT_CARE = "what an ended process had in hand has been handled"


class Turn(asyncio.Lock):
    """Held by the service, of those that share a process, that handles an event with care."""


@dataclass(slots=True)
class Window:
    """What the owner before can have had in hand of a partition: records below `until`, and parked events that were
    due at `since`. At most so many `records` and `rows` are still to be handled with care, and none after `end`."""

    until: int
    records: int
    rows: int
    since: datetime
    end: timedelta


class Caution:
    """Holds back what is read while a window is open, and lets it go on one by one.

    `open_record` opens a record, `take_in` hands it to its lane as well; `over` is called when the last window closes.
    """

    def __init__(
        self,
        runtime: Runtime,
        *,
        turn: Turn,
        open_record: Callable[[Record], list[Execution]],
        take_in: Callable[[Record], list[Execution]],
        over: Callable[[], None],
    ) -> None:
        self._runtime = runtime
        self._turn = turn
        self._open_record = open_record
        self._take_in = take_in
        self._tell_over = over
        self._windows: dict[TopicPartition, Window] = {}
        self._crashes: dict[Mark, int] = {}
        self._held: deque[Record] = deque()
        self._behind: list[Record] = []
        self._looked_ahead = 0
        self._harmless: set[tuple[str, int, int]] = set()
        self._arrived = Signal(runtime.clock)
        self._ended = Signal(runtime.clock)
        self._last_arrival = runtime.clock.monotonic()
        self._handled = 0

    # ── what the intake tells and asks ────────────────────────────────────────────────────────────────────────────

    @property
    def is_on(self) -> bool:
        return bool(self._windows)

    @property
    def idle(self) -> bool:
        """Whether nothing is held back."""
        return not self._held and not self._behind

    def begin(self, until: Mapping[TopicPartition, int], crashes: Mapping[Mark, int]) -> None:
        """Handle with care what stands below these offsets, what is parked there, and what has crashed before."""
        clock, limits = self._runtime.clock, self._runtime.limits
        self._crashes.update(crashes)
        for home in until.keys() | {mark.home for mark in crashes}:
            marked = (mark.offset + 1 for mark in crashes if (mark.home, mark.partition) == (home, home.partition))
            ends = max(until.get(home, 0), *marked, 0)
            self._windows[home] = Window(
                until=ends,
                # Of a share nothing is read: all that it has is parked.
                records=limits.in_flight + limits.fetch if ends and home in self._runtime.assignment.partitions else 0,
                rows=limits.resumed,
                since=clock.now(),
                end=clock.monotonic() + limits.careful_for,
            )
        if self.is_on:
            logger.info("%s: %s", self._runtime.definition.name, WITH_CARE)
        self._handled = 0
        self._last_arrival = clock.monotonic()
        self._arrived.set()

    def remaining(self) -> Mapping[TopicPartition, int]:
        """The partitions whose window is open, and up to where the next owner has to be careful."""
        return {home: window.until for home, window in self._windows.items()}

    def forget(self, partitions: Collection[TopicPartition]) -> None:
        """They were taken away."""
        self._held = deque(each for each in self._held if each.source not in partitions)
        self._behind = [each for each in self._behind if each.source not in partitions]
        self._looked_ahead = 0
        self._harmless.clear()
        self._crashes = {mark: count for mark, count in self._crashes.items() if mark.home not in partitions}
        for partition in partitions:
            self._windows.pop(partition, None)
        self._arrived.set()
        self._ended.set()

    def read_again(self, partitions: Collection[TopicPartition]) -> None:
        """What is held back of them is read once more."""
        self._held = deque(each for each in self._held if each.source not in partitions)
        self._behind = [each for each in self._behind if each.source not in partitions]
        self._looked_ahead = 0
        self._harmless.clear()

    def holds(self, record: Record) -> bool:
        """Whether a record is held back; then it is taken in when its turn comes."""
        if not self.is_on and self.idle:
            return False
        self._held.append(record)
        self._last_arrival = self._runtime.clock.monotonic()
        self._arrived.set()
        return True

    def pauses(self, partition: TopicPartition) -> bool:
        """Whether what is read of a partition would only be held back until caution is over."""
        if not self.is_on:
            return False
        window = self._windows.get(partition)
        return window is None or window.records == 0

    def look(self) -> None:
        """Something may have come to its end."""
        self._ended.set()
        if self.is_on:
            self._arrived.set()

    # ── records ───────────────────────────────────────────────────────────────────────────────────────────────────

    async def run(self) -> None:
        """Let what is held go on until cancelled."""
        while True:
            await self._arrived.wait(at_most=SILENCE if self.is_on else None)
            while self.is_on and self._held:
                await self._look_ahead()
                await self._go_on()
            for home in tuple(self._windows):
                await self._close(home)
            if not self.is_on:
                self._let_go()

    async def _go_on(self) -> None:
        if not self._held:
            return
        record = self._held.popleft()
        self._looked_ahead -= 1
        home = record.source
        window = self._windows.get(home)
        if window is None or window.records == 0 or record.offset >= window.until:
            self._behind.append(record)
        elif _place(record) in self._harmless:
            self._take_in(record)
        else:
            window.records -= 1
            await self._alone(Mark(home, record.partition, record.offset), lambda: self._take_in(record))
            self._bound(home)

    async def _look_ahead(self) -> None:
        """Find those of the next records of which nothing is left to be done: they need no mark."""
        if self._looked_ahead > 0:
            return
        records = list(islice(self._held, self._runtime.limits.batch))
        claims = {_place(record): [each.claim_key for each in self._open_record(record)] for record in records}
        keys = [key for of_record in claims.values() for key in of_record]
        seen = await self._runtime.outages.insist(lambda: self._runtime.store.inbox.seen(keys))
        self._harmless = {place for place, of_record in claims.items() if all(key in seen for key in of_record)}
        self._looked_ahead = len(records)

    def _bound(self, home: TopicPartition) -> None:
        """Slow events must not keep a service slow for long, unless one of them has crashed a process alone."""
        window = self._windows.get(home)
        crashed = any(count for mark, count in self._crashes.items() if mark.home == home)
        if window is not None and self._runtime.clock.monotonic() >= window.end and not crashed:
            window.records = window.rows = 0

    async def _close(self, home: TopicPartition) -> None:
        window, clock = self._windows[home], self._runtime.clock
        is_silent = not self._held and clock.monotonic() - self._last_arrival >= SILENCE
        if window.records and (is_silent or self._runtime.watermarks.low(home) >= window.until):
            window.records = 0
        if window.records or window.rows:
            return
        # With the watermark: if this process ends soon, the window of the next one begins where this one ended.
        await self._settle(home, [mark for mark in self._crashes if mark.home == home])
        if self._windows.get(home) is not window:
            return
        del self._windows[home]
        self._crashes = {mark: count for mark, count in self._crashes.items() if mark.home != home}
        if not self.is_on:
            logger.info("%s: %s: %d events", self._runtime.definition.name, WITHOUT_CARE, self._handled)
            self._tell_over()

    def _let_go(self) -> None:
        behind, held = self._behind, self._held
        self._behind, self._held, self._looked_ahead = [], deque(), 0
        self._harmless.clear()
        for record in (*behind, *held):
            self._take_in(record)

    # ── parked events ─────────────────────────────────────────────────────────────────────────────────────────────

    def homes_with_rows(self) -> Mapping[TopicPartition, datetime]:
        """The partitions whose parked events are to be handled with care: those that were due at an instant."""
        return {home: window.since for home, window in self._windows.items() if window.rows > 0}

    async def resume(self, record: Record, take_in: Callable[[], Sequence[Execution]], *, home: TopicPartition) -> None:
        """Let a parked event go on alone."""
        if home in self._windows:
            self._windows[home].rows -= 1
        await self._alone(Mark(home, record.partition, record.offset), take_in)
        self._bound(home)
        self._arrived.set()

    def has_no_more_rows(self, home: TopicPartition) -> None:
        """Nothing is parked that was due when the partition was taken over."""
        if home in self._windows:
            self._windows[home].rows = 0
        self._arrived.set()

    # ── one at a time ─────────────────────────────────────────────────────────────────────────────────────────────

    async def _alone(self, mark: Mark, take_in: Callable[[], Sequence[Execution]]) -> None:
        """Mark an event, take it in, and return when it has come to its end or its partition was taken away."""
        assignment = self._runtime.assignment
        async with self._turn:
            epoch = assignment.epoch(mark.home)
            crashes = self._crashes.get(mark, 0)
            if epoch is None or (crashes < MOST_CRASHES and not await self._mark(mark, epoch)):
                return
            if assignment.epoch(mark.home) != epoch or mark.home not in self._windows:  # taken away meanwhile
                return
            executions = take_in()
            for execution in executions:
                execution.delivery.mark = mark
                self._burden(execution, crashes)
            self._handled += 1
            while assignment.epoch(mark.home) == epoch and any(each.delivery.unsettled for each in executions):
                await self._ended.wait()
            if assignment.epoch(mark.home) != epoch:
                return
            self._crashes.pop(mark, None)
            if not executions or executions[0].delivery.mark is not None:  # it ended without a transaction
                await self._settle(mark.home, [mark])

    def _burden(self, execution: Execution, crashes: int) -> None:
        """Crashes are attempts, and after so many there is no further one."""
        if crashes < MOST_CRASHES:
            execution.crashes = crashes
        elif execution.given is None and execution.handler is not None:
            execution.crashes = crashes - 1  # the last one is this attempt
            execution.given = execution.outcome = Failed(
                Crashed(crashes, where=execution.handler.where), self._runtime.clock.now(), due=None, reason="crashed"
            )

    async def _mark(self, mark: Mark, epoch: int) -> bool:
        runtime = self._runtime
        try:
            await runtime.outages.insist(lambda: runtime.store.suspects.mark(mark, epoch=epoch))
        except Fenced:
            self._lose(mark.home, epoch)
            return False
        return True

    async def _settle(self, home: TopicPartition, marks: list[Mark]) -> None:
        runtime = self._runtime
        version = runtime.registration.version
        epoch, watermark = runtime.assignment.epoch(home), runtime.watermarks.unstored().get(home)
        if epoch is None or (not marks and watermark is None):
            return

        async def settle() -> None:
            async with runtime.store.transaction() as transaction:
                await transaction.fence({home: epoch}, registry=version)
                watermarks = {} if watermark is None else {home: watermark}
                await transaction.write(Changes(watermarks=watermarks, cleared=marks))

        try:
            await runtime.outages.insist(settle)
        except Fenced:
            self._lose(home, epoch)
        except RegistryChanged:
            await runtime.registration.catch_up()
            await self._settle(home, marks)
        else:
            if watermark is not None:
                runtime.watermarks.stored({home: watermark})

    def _lose(self, home: TopicPartition, epoch: int) -> None:
        if self._runtime.assignment.epoch(home) == epoch:  # it may have come back meanwhile, under a newer one
            self._runtime.assignment.lose([home])


def _place(record: Record) -> tuple[str, int, int]:
    return record.topic, record.partition, record.offset
