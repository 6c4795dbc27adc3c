"""The cable is cut: our own store or log fails, and so does a probe. Then nothing is counted; we wait and go on."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import TypeVar

from microflow.errors import StoreConflict, StoreError, StoreGone
from microflow.ports import Clock, Store
from microflow.trouble import Trouble

logger = logging.getLogger("microflow.outages")

FIRST_WAIT = timedelta(milliseconds=50)
LONGEST_WAIT = timedelta(seconds=5)
TRANSIENT_TRIES = 5

T = TypeVar("T")


class Outages:
    """Judges failures of the store by a probe, and waits while the store is away. `out` says whether it is."""

    def __init__(self, store: Store, *, clock: Clock, chance: Callable[[], float]) -> None:
        self._store = store
        self._clock = clock
        self._chance = chance
        self._trouble = Trouble(logger)
        self._ended = 0
        self._probing = asyncio.Lock()

    @property
    def out(self) -> bool:
        return self._trouble.is_told

    async def cut(self) -> bool:
        """Whether the store cannot be written now. Returns once it can be again: True if it could not.

        Raises StoreGone for one that never will be.
        """
        if not self.out:
            ended = self._ended
            error = await self._probe()
            if error is None:
                return False
            if ended == self._ended:  # else it is well again since this was asked
                self._trouble.met("the database cannot be written; waiting, nothing is lost: %s", error.line)
        async with self._probing:  # one asks for all who wait
            wait = FIRST_WAIT
            while self.out:
                await self._pause(wait)
                wait = min(wait * 2, LONGEST_WAIT)
                if await self._probe() is None:
                    self._ended += 1
                    self._trouble.is_over("the database can be written again")
        return True

    async def pause(self, tries: int) -> None:
        """Wait a little, longer with every try, so that two that got in each other's way do not again."""
        await self._pause(FIRST_WAIT * tries)

    async def insist(self, step: Callable[[], Awaitable[T]]) -> T:
        """Do something with the store that has no reason to fail, through outages and passing errors."""
        tries = 0
        held = Trouble(logger)
        while True:
            try:
                result = await step()
            except StoreError as error:
                if await self.cut():
                    continue
                tries += 1
                if tries > TRANSIENT_TRIES:
                    if not isinstance(error, StoreConflict):  # whoever is in the way now will not be for ever
                        raise
                    held.met("something else holds on to what is needed in the database; waiting: %s", error.line)
                await self.pause(min(tries, TRANSIENT_TRIES))
            else:
                held.is_over("what is needed in the database is free again")
                return result

    async def _probe(self) -> StoreError | None:
        try:
            await self._store.probe()
        except StoreGone:
            raise
        except StoreError as error:
            return error
        return None

    async def _pause(self, duration: timedelta) -> None:
        await self._clock.sleep(duration * (0.5 + self._chance()))
