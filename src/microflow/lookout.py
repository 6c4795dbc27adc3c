"""The lookout: rows that a program in this process appends are found as soon as they are committed.

An append is a statement of the caller's own transaction, and nobody tells us when that is committed: most libraries
have no place to ask, and a notification from inside the transaction would make all commits of the database queue up.
But to append is to announce a commit. So for a while after it somebody looks, less and less often: whoever commits a
few milliseconds after the append waits a few milliseconds, whoever takes longer is found by the relay's own looking.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from datetime import timedelta
from typing import ClassVar

from microflow.errors import StoreError
from microflow.ports import Clock, Outbox

SHORTEST_WAIT = timedelta(milliseconds=1)
PATIENCE = timedelta(milliseconds=250)


class Lookout:
    """Looks into one outbox while a commit is expected, and tells those who wait for rows, in every process."""

    _at_work: ClassVar[set[Lookout]] = set()

    def __init__(self, outbox: Outbox, *, clock: Clock) -> None:
        self._outbox = outbox
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        self._expected = asyncio.Event()

    @classmethod
    def expect(cls) -> None:
        """Somebody in this process has appended, in whichever thread and to whichever database, and will commit."""
        for lookout in tuple(cls._at_work):
            with contextlib.suppress(RuntimeError):  # its loop was closed meanwhile
                lookout._loop.call_soon_threadsafe(lookout._expected.set)

    async def run(self) -> None:
        """Be on the lookout until cancelled."""
        with self._counted():
            while True:
                await self._expected.wait()
                with contextlib.suppress(StoreError):  # then it is found later, as anybody else's row is
                    await self._look()

    async def _look(self) -> None:
        since = self._clock.monotonic()
        while (waited := self._clock.monotonic() - since) < PATIENCE or self._expected.is_set():
            if self._expected.is_set():
                self._expected.clear()
                since, waited = self._clock.monotonic(), timedelta(0)
            await self._clock.sleep(max(SHORTEST_WAIT, waited / 3))
            if await self._outbox.pending(after=-1, limit=1):
                self._outbox.appended()

    @contextlib.contextmanager
    def _counted(self) -> Iterator[None]:
        self._at_work.add(self)
        try:
            yield
        finally:
            self._at_work.discard(self)
