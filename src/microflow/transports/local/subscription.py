"""A subscription: records as the caller fetches them, and the listener told of every change of partitions.

Two tasks share the work. The caller's own is in `fetch`. The follower watches the group and is the only one that
calls the listener, so its callbacks never overlap, and no callback is cut short because a `fetch` was cancelled.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping, Sequence
from datetime import timedelta

from microflow.embedded.notifications import Watch
from microflow.errors import TransportError
from microflow.ports import Clock, Committed, RebalanceListener, Record, TopicPartition
from microflow.transports.local.log import Log
from microflow.transports.local.membership import Membership
from microflow.transports.local.reading import Reading

NO_TIME = timedelta(0)


class LocalSubscription:
    """`microflow.ports.Subscription` on the local log."""

    def __init__(self, log: Log, membership: Membership, listener: RebalanceListener, *, clock: Clock) -> None:
        self._log = log
        self._membership = membership
        self._listener = listener
        self._clock = clock
        self._reading = Reading(log)
        self._term: int | None = None
        self._closed = False
        self._failure: Exception | None = None
        self._arrivals: Watch = log.database.watch()
        self._changes: Watch = log.database.watch()
        self._follower: asyncio.Task[None] | None = None

    # ── what the caller does ──────────────────────────────────────────────────────────────────────────────────────

    async def fetch(self, *, max_records: int, wait: timedelta) -> Sequence[Record]:
        await self._clock.sleep(NO_TIME)  # a caller with a long backlog must not keep everybody else from running
        if self._closed:
            raise TransportError("the subscription is closed")
        if self._follower is None:
            self._follower = asyncio.get_running_loop().create_task(self._follow())
        if records := self._read(max_records):
            return records
        if wait <= NO_TIME:
            return []
        alarm = asyncio.get_running_loop().create_task(self._wake_after(wait))
        try:
            while not alarm.done():
                await self._arrivals.wait()
                if (records := self._read(max_records)) or self._closed:
                    return records
            return []
        finally:
            alarm.cancel()

    def seek(self, partition: TopicPartition, offset: int) -> None:
        self._reading.seek(partition, offset)
        self._arrivals.wake()

    def pause(self, partitions: Collection[TopicPartition]) -> None:
        self._reading.pause(partitions)

    def resume(self, partitions: Collection[TopicPartition]) -> None:
        self._reading.resume(partitions)
        self._arrivals.wake()

    async def commit(self, offsets: Mapping[TopicPartition, int], *, metadata: str) -> None:
        if self._closed or self._term is None or not self._reading.partitions.issuperset(offsets):
            raise TransportError("an offset comes too late: its partition is not assigned any more")
        ids = self._log.partition_ids(offsets)
        by_id = {ids[partition]: offset for partition, offset in offsets.items()}
        await self._membership.commit(self._term, by_id, metadata=metadata)

    async def committed(self, partitions: Collection[TopicPartition]) -> Mapping[TopicPartition, Committed]:
        ids = self._log.partition_ids(partitions)
        found = self._membership.committed(ids.values())
        return {partition: found[number] for partition, number in ids.items() if number in found}

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._arrivals.wake()
        try:
            await self._membership.leave()
        finally:
            self._arrivals.close()
            self._changes.close()
            await self._stop_following()

    def _read(self, max_records: int) -> list[Record]:
        if self._failure is not None:
            failure, self._failure = self._failure, None
            self._changes.wake()  # what failed is tried again while the caller decides what to do about it
            raise failure
        if self._closed:
            return []
        self._log.check_still_there()
        if self._term is None or self._membership.term() != self._term:
            return []
        return self._reading.read(max_records=max_records)

    async def _wake_after(self, wait: timedelta) -> None:
        await self._clock.sleep(wait)
        self._arrivals.wake()

    # ── what the follower does ────────────────────────────────────────────────────────────────────────────────────

    async def _follow(self) -> None:
        while not self._closed:
            try:
                await self._catch_up()
            except Exception as error:
                self._failure = error
                self._arrivals.wake()
            await self._changes.wait()

    async def _catch_up(self) -> None:
        """Bring the listener in line with the group: take away what is over, hand out what is new."""
        while not self._closed:
            term = self._membership.term()
            if term is not None and term == self._term:
                return
            if self._term is not None:
                await self._take_away()
            elif term is not None:
                await self._hand_out(term)
            else:
                await self._membership.give_up()
                if self._membership.term() is None:
                    return  # others have not given up theirs yet

    async def _take_away(self) -> None:
        try:
            await self._listener.revoked(self._reading.partitions)
        finally:
            self._term = None
            self._reading.grant({})

    async def _hand_out(self, term: int) -> None:
        self._reading.grant(self._membership.partitions())
        await self._listener.assigned(self._reading.partitions)
        self._term = term
        self._arrivals.wake()

    async def _stop_following(self) -> None:
        if self._follower is None or self._follower is asyncio.current_task():
            return
        self._follower.cancel()
        await asyncio.wait([self._follower])  # and whoever cancels us meanwhile is heard
        if not self._follower.cancelled():
            self._follower.exception()
