"""Parking: failed events come back to the lane of their key when due, and what waited behind them follows."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from datetime import datetime, timedelta
from functools import partial

from microflow.caution import Caution
from microflow.deliveries import UNREADABLE, Execution
from microflow.lanes import Lane
from microflow.ports import ClaimKey, Parked, Record, TopicPartition
from microflow.runtime import Runtime
from microflow.signals import Signal

LOOK_AT_MOST_EVERY = timedelta(milliseconds=200)


class Parking:
    """Hands parked rows of owned partitions to the lanes, at most `limits.resumed` at once.

    `reopen` and `lane_of` are the intake's: a retry runs like a first delivery.
    """

    def __init__(
        self,
        runtime: Runtime,
        *,
        reopen: Callable[[Parked], Execution | None],
        lane_of: Callable[[Record], Lane],
        caution: Caution,
    ) -> None:
        self._runtime = runtime
        self._reopen = reopen
        self._caution = caution
        self._lane_of = lane_of
        self._changed = Signal(runtime.clock)
        self._handlers = [UNREADABLE, *(handler.name for handler in runtime.definition.handlers)]
        self._in_hand: list[Execution] = []
        self._strangers: set[ClaimKey] = set()
        self._version = 0

    def wake(self) -> None:
        """Parked rows, or the partitions owned, have changed."""
        self._changed.set()

    async def watch(self) -> None:
        """Be woken when somebody else parks or redrives, such as a person at a shell, until cancelled."""
        while True:
            await self._runtime.outages.insist(self._runtime.store.parking.changed)
            self._changed.set()
            await self._runtime.clock.sleep(LOOK_AT_MOST_EVERY)

    async def run(self) -> None:
        """Resume what is due until cancelled."""
        clock = self._runtime.clock
        while True:
            await self._resume_due()
            due = await self._next_due()
            await self._changed.wait(at_most=None if due is None else due - clock.now())

    async def idle(self) -> bool:
        """Whether nothing is in hand and nothing is due now."""
        self._forget_ended()
        return not self._in_hand and not await self._due(limit=1)

    async def _resume_due(self) -> None:
        for home, since in self._caution.homes_with_rows().items():
            await self._resume_with_care(home, since)
        if self._caution.is_on:
            return
        self._forget_ended()
        room = self._runtime.limits.resumed - len(self._in_hand)
        for row in await self._due(limit=room) if room > 0 else ():
            self._resume(row)

    async def _resume_with_care(self, home: TopicPartition, since: datetime) -> None:
        while home in self._caution.homes_with_rows():
            self._forget_ended()
            for row in await self._due([home], now=since, limit=1):
                await self._caution.resume(row.record, partial(self._resume, row), home=home)
                break
            else:
                self._caution.has_no_more_rows(home)

    async def _due(
        self, homes: Collection[TopicPartition] | None = None, *, now: datetime | None = None, limit: int
    ) -> Sequence[Parked]:
        runtime = self._runtime
        partitions = list(runtime.assignment.partitions if homes is None else homes)
        if not partitions:
            return ()
        return await runtime.outages.insist(
            lambda: runtime.store.parking.due(
                partitions,
                now=now or runtime.clock.now(),
                limit=limit,
                excluding=self._excluded(),
                handlers=self._handlers,
            )
        )

    async def _next_due(self) -> datetime | None:
        runtime = self._runtime
        partitions = list(runtime.assignment.partitions)
        if not partitions or self._caution.is_on or len(self._in_hand) >= runtime.limits.resumed:
            return None  # whatever changes that wakes us
        return await runtime.outages.insist(
            lambda: runtime.store.parking.next_due(partitions, excluding=self._excluded(), handlers=self._handlers)
        )

    def _excluded(self) -> list[ClaimKey]:
        if self._version != self._runtime.registration.version:
            self._version = self._runtime.registration.version
            self._strangers.clear()
        return [*(each.claim_key for each in self._in_hand), *self._strangers]

    def _resume(self, row: Parked) -> list[Execution]:
        execution = self._reopen(row)
        if execution is None:
            self._strangers.add(row.claim)
            return []
        execution.parked = row
        execution.delivery.detached = True
        execution.delivery.unsettled = 1
        self._in_hand.append(execution)
        self._lane_of(row.record).submit([execution])
        return [execution]

    def _forget_ended(self) -> None:
        self._in_hand = [each for each in self._in_hand if not each.ended]
