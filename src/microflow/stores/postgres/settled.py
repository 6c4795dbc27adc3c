"""Up to which position the outbox is done with: no row is there, and none can come any more.

While anybody holds an old snapshot, as a backup or a long report does, rows that were deleted cannot be removed. Who
begins behind what is settled does not pass them, however many they are.

That nothing is seen below a position says little: positions are taken before the commit, so a row with a lower one may
appear later. Nor does the age of a transaction tell: a position is taken before the transaction has a number. But
whoever appends holds a lock on the table, from before it takes a position until everybody sees what became of it.
So a position that was taken is settled once all those who held the lock at a moment after it have let go of it, and a
snapshot that was begun after that shows no row up to there. `create index concurrently` waits in the same way.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

from microflow.embedded.statements import statements
from microflow.stores.postgres.session import Session, next_birth

SQL = statements(Path(__file__).with_name("settled.sql"))

NOTHING = -1
MANY = 1_000
"""After so many deletions it is worth looking how far things are settled."""
NOW_AND_THEN = 0.5
"""In seconds: after so long it is worth it for fewer."""


class Settled:
    """What a process knows of it. What is known was learnt from a server that lives: one that has crashed, or has taken
    over from another, may give positions once more. A session that was connected before the last look is one to the
    same server, and what it is told holds; with others the process begins anew."""

    def __init__(self) -> None:
        self._position = NOTHING
        self._looked = next_birth()
        self._last_look = 0.0
        self._deleted = 0
        self._taken = NOTHING
        self._wanted = NOTHING
        self._appenders: frozenset[str] = frozenset()
        self._is_looking = False

    def up_to(self, session: Session) -> int:
        """The position up to which a statement of this session need not look."""
        return self._position if self._knows(session) else NOTHING

    def deleted(self, session: Session, number: int, *, highest: int | None) -> None:
        """Rows were deleted. That one was there says that its position was taken, on this server."""
        self._deleted += number
        if highest is not None and self._knows(session):
            self._taken = max(self._taken, highest)

    @property
    def is_worth_a_look(self) -> bool:
        if self._is_looking or (not self._deleted and self._wanted <= self._position):
            return False
        return self._deleted >= MANY or asyncio.get_running_loop().time() - self._last_look >= NOW_AND_THEN

    def forget(self) -> None:
        """Begin anew: what is known has turned out to be wrong."""
        self._position = self._taken = self._wanted = NOTHING
        self._appenders = frozenset()

    async def look(self, session: Session) -> None:
        """See whether more is settled. Those who are found to be appending are waited for until a later look."""
        if self._is_looking:
            return
        self._is_looking = True
        try:
            await self._look(session)
        finally:
            self._is_looking = False
            self._last_look = asyncio.get_running_loop().time()

    async def _look(self, session: Session) -> None:
        if not self._knows(session):
            self.forget()
        self._deleted = 0
        taken, looked = self._taken, next_birth()
        ((names,),) = await session.fetch(SQL["appenders"])
        self._looked = looked
        known, wanted = self._position, self._wanted
        if wanted > known:
            self._appenders &= frozenset(names)
            if self._appenders:
                return
            # By a statement of its own: its snapshot is of a moment at which they had let go.
            rows = await session.fetch(SQL["first row"], known, wanted)
            if self._wanted != wanted:
                return  # forgotten meanwhile
            self._position = rows[0]["position"] - 1 if rows else wanted
        self._wanted, self._appenders = min(taken, self._taken), frozenset(names)

    def _knows(self, session: Session) -> bool:
        return session.birth < self._looked
