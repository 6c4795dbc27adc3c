"""The relay: what was committed in the outbox reaches the log, in order per key, and is forgotten once acknowledged.

A relay publishes a row only after every earlier row of its key was acknowledged, or was sent before it on the same
ordered stream. So the first time a row appears in the log, its predecessor is there already, however many relays
run and whichever of them were paused; repetitions are absorbed by the inboxes of those who read.

What a process has just committed it publishes from memory (`outgoing`), where the store has seen that nobody else has
the key in hand. The scan is for all the rest: what others have appended, what has failed, what a crash has left.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from datetime import timedelta

from microflow.destinations import FIRST_WAIT, LONGEST_WAIT, Destinations
from microflow.errors import LogGone, StoreError, StoreGone, TransportError
from microflow.faults import Reach, pass_by
from microflow.outgoing import Outgoing
from microflow.ports import Clock, OrderingKey, Outbox, OutboxRow, Transport
from microflow.signals import Signal
from microflow.tracing import UNTRACED, Tracing
from microflow.trouble import Trouble

logger = logging.getLogger("microflow.relay")

LEASE = timedelta(seconds=2)
LEFT_TO_PUBLISHERS = timedelta(seconds=2)
"""How long, after a row was made, others leave it to the process that has it in memory."""
LONGEST_SCAN = timedelta(seconds=1)
FIRST_LOOK = timedelta(milliseconds=5)
LONGEST_LOOK = timedelta(milliseconds=160)
"""How soon to look again for rows behind some that another process has in memory: usually it is done by then."""
NOW = timedelta(0)


@dataclass(slots=True)
class _Found:
    """What a scan has found: how many rows it took, the keys that it leaves to those who have them in memory, whether
    other rows wait behind these, and when to look again."""

    taken: int = 0
    is_behind: bool = False
    left: set[OrderingKey] = field(default_factory=set)
    again: timedelta | None = None

    def look_again(self, wait: timedelta | None) -> None:
        if wait is not None:
            self.again = wait if self.again is None else min(self.again, wait)


class Relay:
    """Publishes the outbox of one database. Several may run, in any processes: each scans the shards that it holds.

    With `from_memory` its `outgoing` also takes what an atomic step of this process has just committed.
    """

    def __init__(
        self,
        outbox: Outbox,
        transport: Transport,
        *,
        clock: Clock,
        owner: str,
        chance: Callable[[], float],
        batch: int = 500,
        in_hand: int = 2_000,
        from_memory: bool = False,
        tracing: Tracing = UNTRACED,
        reach: Reach = pass_by,
    ) -> None:
        self._outbox = outbox
        self._clock = clock
        self._owner = owner
        self._batch = batch
        self._signal = Signal(clock)
        self._destinations = Destinations(outbox, transport, clock=clock, wake=self._signal.set)
        self.outgoing = Outgoing(
            outbox,
            transport,
            self._destinations,
            clock=clock,
            owner=owner,
            chance=chance,
            batch=batch,
            most=in_hand,
            from_memory=from_memory,
            wake=self._signal.set,
            tracing=tracing,
            reach=reach,
        )
        self._lease_ends = clock.now() - LEASE
        self._shards: frozenset[int] = frozenset()
        self._scans = 0
        self._found = _Found()
        self._longest_scan = LONGEST_SCAN
        self._look = FIRST_LOOK
        self.stands_by = False
        """Whether others hold the leases of all shards."""

    @property
    def published(self) -> int:
        """How many records the log has acknowledged, repetitions included."""
        return self.outgoing.published

    def wake(self) -> None:
        """Rows were committed that somebody has to find: scan now."""
        self._signal.set()

    async def learn(self, topics: Collection[str], *, version: int) -> None:
        """Get to know topics before the first row goes there, as they are under a version of the registry.

        Raises TransportError and StoreError.
        """
        self._destinations.known_as_of(version)
        await self._destinations.learn(topics)

    def is_refused(self, topic: str) -> bool:
        """Whether a topic takes nothing for now, as far as this relay knows."""
        return topic in self._destinations.waiting

    async def watch(self) -> None:
        """Be woken by commits of others, until cancelled."""
        while True:
            try:
                await self._outbox.changed()
            except StoreGone:
                raise
            except StoreError:
                await self._clock.sleep(LONGEST_WAIT)
            self._signal.set()

    async def run(self) -> None:
        """Publish until cancelled, through outages of the log and of the database.

        Raises StoreGone and LogGone for one that was deleted.
        """
        wait = FIRST_WAIT
        trouble = Trouble(logger)
        try:
            while True:
                try:
                    again = await self._scan()
                except (StoreGone, LogGone):
                    raise
                except (StoreError, TransportError) as error:
                    trouble.met("the outbox waits: %s", error.line)
                    # Whoever wakes us knows of commits at most, and nothing of whether a scan would succeed.
                    await self._clock.sleep(wait)
                    wait = min(wait * 2, LONGEST_WAIT)
                    self._signal.clear()
                    continue
                trouble.is_over("the outbox is published again")
                wait = FIRST_WAIT
                await self._signal.wait(at_most=again)
        finally:
            await self.outgoing.close()

    async def publish_pending(self) -> timedelta | None:
        """Publish what is there, as far as it can be; return when to try again, or None if nothing is left.

        Raises StoreError and TransportError; rows that were not acknowledged stay.
        """
        while True:
            self._signal.clear()
            again = await self._scan()
            await self.outgoing.settled()
            if again != NOW and not self._signal.is_set:
                return again

    async def flush(self) -> bool:
        """Return once everything is published that can be, and whether that is everything of ours.

        What waits for a partition that fails is waited for, what waits for a missing topic or a record that is too
        large is not: that may take for ever. Whoever stops publishing calls it last, while `run` runs.
        """
        while True:
            before = self._scans
            self.wake()
            while self._scans == before:
                await self._clock.sleep(timedelta(milliseconds=5))
            if not self.outgoing.in_hand and self._found.again != NOW and not self._destinations.is_hopeful:
                return not self._destinations.waiting

    async def release(self) -> None:
        """Let other relays begin at once."""
        now = self._clock.now()
        if self._lease_ends > now:
            self._lease_ends = now
            await self._outbox.lease(owner=self._owner, now=now, until=now)

    # ── a scan ────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _scan(self) -> timedelta | None:
        """Put into the queues what waits and is ours; return when to look again, None if nobody knows."""
        if self.outgoing.failure is not None:
            raise self.outgoing.failure
        several = self._outbox.shards > 1
        found = _Found()
        if not several or await self._hold_leases():
            self.outgoing.begin_scan()
            self._destinations.begin_scan(self.outgoing.in_hand)
            try:
                await self._read(self._shards if several else None, found)
            finally:
                self.outgoing.end_scan()
            found.look_again(self._destinations.next_try())
        if found.is_behind:
            found.look_again(self._look)
        self._look = min(self._look * 2, LONGEST_LOOK) if found.is_behind and not found.taken else FIRST_LOOK
        if several:
            found.look_again(LEASE / 3)  # to keep our shards, and to take those whose owner is gone
        self._found = found
        self._scans += 1
        return found.again

    async def _read(self, shards: frozenset[int] | None, found: _Found) -> None:
        ends = self._clock.monotonic() + self._longest_scan
        async with self._outbox.scan(page=self._batch, shards=shards, publisher=self.outgoing.publisher) as pages:
            async for rows in pages:
                if not await self._hold_leases():
                    found.look_again(LEASE / 3)  # if those who publish are gone, the rows will be ours
                    return
                if shards is not None and not shards <= self._shards:
                    found.look_again(NOW)  # some of these rows are others' to publish
                    return
                await self._destinations.learn({row.topic for row in rows})
                for row in rows:
                    self._offer(row, found)
                self.outgoing.flush()
                if not await self.outgoing.has_room(wait=ends - self._clock.monotonic()):
                    return  # it wakes us
                if self._clock.monotonic() >= ends:
                    # As of a moment that is too long ago. What does not move must not be all that is ever seen.
                    self._longest_scan = LONGEST_SCAN if found.taken else self._longest_scan * 2
                    found.look_again(NOW)
                    return
        self._longest_scan = LONGEST_SCAN
        self._destinations.end_scan()

    def _offer(self, row: OutboxRow, found: _Found) -> None:
        if self.outgoing.has(row):
            return
        key = None if row.key is None else OrderingKey(row.topic, row.key)
        if key in found.left:
            found.is_behind = True
            return
        age = self._clock.now() - row.created_at
        # One of the future is from before the clock was set back.
        if self._is_anothers(row) and -LEFT_TO_PUBLISHERS < age < LEFT_TO_PUBLISHERS:
            found.look_again(LEFT_TO_PUBLISHERS - age)
            if key is not None:
                found.left.add(key)
            return
        partition = self._destinations.take(row)
        if partition is not None:
            self.outgoing.offer(row, partition)
            found.taken += 1

    def _is_anothers(self, row: OutboxRow) -> bool:
        return row.publisher is not None and not self.outgoing.is_mine(row.publisher)

    async def _hold_leases(self) -> bool:
        now = self._clock.now()
        if self._lease_ends - now < LEASE * 2 / 3:
            self._shards = await self._outbox.lease(owner=self._owner, now=now, until=now + LEASE)
            self.stands_by = not self._shards
            if self.stands_by:
                return False
            self._lease_ends = now + LEASE
        return True
