"""Parking: failed events come back to the lane of their key when due, and what waited behind them follows."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from datetime import datetime, timedelta
from functools import partial

from microflow.caution import Caution
from microflow.deliveries import Execution
from microflow.lanes import Lane
from microflow.ports import ClaimKey, Parked, Record, TopicPartition
from microflow.runtime import Runtime
from microflow.shares import Ground, Shares
from microflow.signals import Signal

LOOK_AT_MOST_EVERY = timedelta(milliseconds=200)
LOOK_WHO_RUNS_WHAT_EVERY = timedelta(seconds=1)


class Parking:
    """Hands parked rows of owned partitions, and of shares, to the lanes, at most `limits.resumed` at once.

    `reopen` and `lane_of` are the intake's: a retry runs like a first delivery. While `is_rebalancing`, nobody knows
    who runs what.
    """

    def __init__(
        self,
        runtime: Runtime,
        shares: Shares,
        *,
        reopen: Callable[[Parked], Execution | None],
        lane_of: Callable[[Record], Lane],
        caution: Caution,
        is_rebalancing: Callable[[], bool],
    ) -> None:
        self._runtime = runtime
        self._shares = shares
        self._reopen = reopen
        self._caution = caution
        self._lane_of = lane_of
        self._is_rebalancing = is_rebalancing
        self._changed = Signal(runtime.clock)
        self._in_hand: list[Execution] = []
        self._strangers: set[ClaimKey] = set()
        self._version = 0
        self._look_at: timedelta | None = runtime.clock.monotonic()
        self._looked_at = self._look_at - LOOK_WHO_RUNS_WHAT_EVERY
        self._looked_for = -1

    def wake(self) -> None:
        """Parked rows have changed."""
        self._changed.set()

    def owners_changed(self) -> None:
        """Others own something else now, or have come or gone: nothing is run before it was looked who runs what."""
        self._look_by(self._runtime.clock.monotonic())
        self._changed.set()

    async def watch(self) -> None:
        """Be woken when somebody else parks or redrives, such as a person at a shell, until cancelled."""
        while True:
            await self._runtime.outages.insist(self._runtime.store.parking.changed)
            self.wake()
            await self._runtime.clock.sleep(LOOK_AT_MOST_EVERY)

    async def run(self) -> None:
        """Resume what is due until cancelled."""
        clock = self._runtime.clock
        while True:
            await self._look_who_runs_what()
            await self._resume_due()
            due = await self._next_due()
            waits = [] if due is None else [due - clock.now()]
            if self._look_at is not None and not self._is_rebalancing():
                waits.append(self._look_at - clock.monotonic())
            await self._changed.wait(at_most=min(waits, default=None))

    async def idle(self) -> bool:
        """Whether nothing is in hand, nothing is due now, and nobody is to be looked for."""
        self._forget_ended()
        now = self._runtime.clock.monotonic()
        will_look = self._look_at is not None and self._look_at <= max(now, self._looked_at + LOOK_WHO_RUNS_WHAT_EVERY)
        if self._in_hand or will_look or self._looked_for != self._runtime.assignment.changes:
            return False
        return not await self._due(self._shares.grounds(), limit=1)

    # ── who runs what ─────────────────────────────────────────────────────────────────────────────────────────────

    async def _look_who_runs_what(self) -> None:
        clock = self._runtime.clock
        if self._shares.has_lost_some:
            self._look_by(self._looked_at + LOOK_WHO_RUNS_WHAT_EVERY)
        if self._look_at is None or self._look_at > clock.monotonic() or self._is_rebalancing():
            return
        self._look_at = None
        self._looked_at = clock.monotonic()
        looked_for = self._runtime.assignment.changes
        self._forget_ended()
        await self._shares.look({each.delivery.home for each in self._in_hand})
        self._looked_for = looked_for
        if self._shares.may_soon_change:
            self._look_by(self._looked_at + LOOK_WHO_RUNS_WHAT_EVERY)
        if self._shares.next_look is not None:
            self._look_by(self._shares.next_look)

    def _look_by(self, instant: timedelta) -> None:
        self._look_at = instant if self._look_at is None else min(self._look_at, instant)

    # ── what is due ───────────────────────────────────────────────────────────────────────────────────────────────

    async def _resume_due(self) -> None:
        if self._looked_for != self._runtime.assignment.changes:
            return  # somebody may still run what is parked of a partition that came a moment ago
        for home, since in self._caution.homes_with_rows().items():
            await self._resume_with_care(home, since)
        if self._caution.is_on:
            return
        self._forget_ended()
        for handler in tuple(self._runtime.circuits.in_want):
            for row in await self._due(self._shares.grounds(), limit=1, handlers=[handler]):
                self._resume(row)
        room = self._room()
        for row in await self._due(self._shares.grounds(), limit=room) if room > 0 else ():
            self._resume(row)

    def _room(self) -> int:
        """How many more may be in hand. Those that wait for a circuit must not keep the others from being resumed."""
        resting = self._runtime.circuits.open
        in_hand = sum(each.claim_key.handler not in resting for each in self._in_hand)
        return self._runtime.limits.resumed - in_hand

    async def _resume_with_care(self, home: TopicPartition, since: datetime) -> None:
        while home in self._caution.homes_with_rows():
            self._forget_ended()
            for row in await self._due(self._shares.ground_of(home), now=since, limit=1):
                await self._caution.resume(row.record, partial(self._resume, row), home=home)
                break
            else:
                self._caution.has_no_more_rows(home)

    async def _due(
        self,
        grounds: Sequence[Ground],
        *,
        limit: int,
        now: datetime | None = None,
        handlers: Collection[str] | None = None,
    ) -> Sequence[Parked]:
        runtime = self._runtime
        excluded = self._excluded()
        found: list[Parked] = []
        for ground in self._awake(grounds, handlers):
            found += await runtime.outages.insist(
                partial(
                    runtime.store.parking.due,
                    ground.partitions,
                    now=now or runtime.clock.now(),
                    limit=limit,
                    excluding=excluded,
                    handlers=ground.handlers,
                )
            )
        return found[:limit]

    async def _next_due(self) -> datetime | None:
        runtime = self._runtime
        if self._caution.is_on or self._room() <= 0:
            return None  # whatever changes that wakes us
        excluded = self._excluded()
        ours = [await self._next_due_of(ground, excluded) for ground in self._awake(self._shares.grounds())]
        others = [await self._next_due_of(ground, ()) for ground in self._shares.homeless()]
        if homeless := [each for each in others if each is not None]:
            wait = max(min(homeless) - runtime.clock.now(), timedelta(0))
            earliest = self._looked_at + LOOK_WHO_RUNS_WHAT_EVERY
            self._look_by(max(runtime.clock.monotonic() + wait, earliest))
        return min((each for each in ours if each is not None), default=None)

    async def _next_due_of(self, ground: Ground, excluding: Sequence[ClaimKey]) -> datetime | None:
        return await self._runtime.outages.insist(
            partial(
                self._runtime.store.parking.next_due,
                ground.partitions,
                excluding=excluding,
                handlers=ground.handlers,
            )
        )

    def _awake(self, grounds: Sequence[Ground], handlers: Collection[str] | None = None) -> Sequence[Ground]:
        """Grounds without the handlers whose circuit is open; or with these handlers only."""
        resting = self._runtime.circuits.open
        if handlers is None and not resting:
            return grounds
        narrowed = [
            ground._replace(
                handlers=[
                    name for name in ground.handlers if (name not in resting if handlers is None else name in handlers)
                ]
            )
            for ground in grounds
        ]
        return [ground for ground in narrowed if ground.handlers]

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
        execution.delivery.home = self._shares.home_of(row)
        execution.delivery.detached = True
        execution.delivery.unsettled = 1
        self._in_hand.append(execution)
        self._lane_of(row.record).submit([execution])
        return [execution]

    def _forget_ended(self) -> None:
        self._in_hand = [each for each in self._in_hand if not each.ended]
