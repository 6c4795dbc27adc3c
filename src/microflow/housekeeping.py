"""Housekeeping: watermarks that moved without a transaction are stored, and what nobody needs any more is forgotten."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from functools import partial

from microflow.envelopes import EPOCH
from microflow.errors import Fenced, RegistryChanged
from microflow.ports import Changes
from microflow.runtime import Runtime
from microflow.signals import Signal

logger = logging.getLogger("microflow.housekeeping")

STORE_WATERMARKS_WITHIN = timedelta(milliseconds=500)
PURGE_EVERY = timedelta(minutes=10)
PURGE_AT_ONCE = 5_000


class Housekeeping:
    """`tell_offsets` is called after watermarks have moved, for displays of lag."""

    def __init__(self, runtime: Runtime, *, tell_offsets: Callable[[], Awaitable[None]]) -> None:
        self._runtime = runtime
        self._tell_offsets = tell_offsets
        self._moved = Signal(runtime.clock)

    def moved(self) -> None:
        """A watermark may have moved."""
        self._moved.set()

    async def store_watermarks(self) -> None:
        """Store watermarks within a second of their moving, until cancelled."""
        while True:
            await self._moved.wait()
            await self._runtime.clock.sleep(STORE_WATERMARKS_WITHIN)
            await self._runtime.outages.insist(self.store_watermarks_now)
            await self._tell_offsets()

    async def store_watermarks_now(self) -> None:
        """One small fenced transaction for the watermarks that no other one has stored."""
        runtime = self._runtime
        version = runtime.registration.version
        watermarks = {
            partition: offset
            for partition, offset in runtime.watermarks.unstored().items()
            if runtime.assignment.owns(partition)
        }
        if not watermarks:
            return
        runtime.reach("before watermark")
        try:
            async with runtime.store.transaction() as transaction:
                await transaction.fence(runtime.assignment.epochs(watermarks), registry=version)
                await transaction.write(Changes(watermarks=watermarks))
        except Fenced as fenced:
            runtime.assignment.lose(partition for partition in watermarks if partition in fenced.partitions)
            self._moved.set()  # the others' are still to be stored
            return
        except RegistryChanged:
            self._moved.set()
            await runtime.registration.catch_up()
            return
        runtime.reach("after watermark")
        runtime.watermarks.stored(watermarks)

    async def purge(self) -> None:
        """Forget finished claims and old dead letters once their retention is over, until cancelled."""
        runtime = self._runtime
        store, limits = runtime.store, runtime.limits
        while True:
            now = runtime.clock.now()
            finished, failed = _ago(limits.inbox_retention, now), _ago(limits.dead_letter_retention, now)
            await self._purge_all(partial(store.inbox.purge, completed_before=finished))
            await self._purge_all(partial(store.dead_letters.purge, failed_before=failed))
            await runtime.clock.sleep(PURGE_EVERY)

    async def _purge_all(self, purge: Callable[..., Awaitable[int]]) -> None:
        runtime = self._runtime
        while await runtime.outages.insist(partial(purge, limit=PURGE_AT_ONCE)) == PURGE_AT_ONCE:
            await runtime.clock.sleep(timedelta(0))


def _ago(span: timedelta, now: datetime) -> datetime:
    """So long before now; for ever before it is before anything can have happened."""
    return now - min(span, now - EPOCH)
