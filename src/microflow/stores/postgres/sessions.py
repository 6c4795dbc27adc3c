"""A few connections for one purpose: opened when they are needed, kept, and thrown away once they are broken."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import TypeVar

from microflow.errors import StoreUnavailable
from microflow.stores.postgres.errors import breaks_connection, translated
from microflow.stores.postgres.session import Row, Session

PATIENCE = timedelta(seconds=10)

T = TypeVar("T")


class Sessions:
    """At most `most` at once; who comes later waits, and after a while is told that all are busy."""

    def __init__(self, connect: Callable[[], Awaitable[Session]], *, most: int, purpose: str) -> None:
        self._connect = connect
        self._places = asyncio.Semaphore(most)
        self._idle: list[Session] = []
        self._used: set[Session] = set()
        self._purpose = purpose
        self._closed = False

    @asynccontextmanager
    async def session(self) -> AsyncIterator[Session]:
        """One that nobody else uses meanwhile. It is not used again if the block leaves it broken, or in use."""
        session = await self._take()
        try:
            yield session
        except BaseException as error:
            if breaks_connection(error):
                session.hang_up()
            raise
        finally:
            self._give_back(session)

    async def fetch(self, sql: str, *args: object) -> Sequence[Row]:
        """Run one statement by itself. Raises StoreError."""
        return await self.run(lambda session: session.fetch(sql, *args))

    async def run(self, use: Callable[[Session], Awaitable[T]]) -> T:
        """Use one for statements that stand by themselves. Raises StoreError."""
        async with self.session() as session:
            try:
                with translated():
                    return await use(session)
            except asyncio.CancelledError:
                session.hang_up()  # what it was doing goes on for a moment, and nobody waits for that
                raise

    async def close(self) -> None:
        """Close what is idle; what is in use is dropped when it is given back."""
        self._closed = True
        idle, self._idle = self._idle, []
        await asyncio.gather(*(session.close() for session in idle), return_exceptions=True)
        for session in self._used:
            session.hang_up()

    async def _take(self) -> Session:
        if self._closed:
            raise StoreUnavailable("The store is closed.")
        if self._places.locked():
            try:
                async with asyncio.timeout(PATIENCE.total_seconds()):
                    await self._places.acquire()
            except TimeoutError:
                raise StoreUnavailable(
                    f"All connections for {self._purpose} have been in use for {PATIENCE.total_seconds():g} s."
                ) from None
        else:
            await self._places.acquire()
        try:
            while self._idle:
                session = self._idle.pop()
                if not session.closed:
                    break
            else:
                session = await self._connect()
        except BaseException:
            self._places.release()
            raise
        self._used.add(session)
        return session

    def _give_back(self, session: Session) -> None:
        self._used.discard(session)
        self._places.release()
        if self._closed or session.in_transaction:
            session.hang_up()
        elif not session.closed:
            self._idle.append(session)
