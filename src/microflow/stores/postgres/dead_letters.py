"""Events that were given up, and their way back."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from pathlib import Path

from microflow.embedded.headers import encode_headers
from microflow.embedded.statements import statements
from microflow.ports import ClaimKey, DeadLetter
from microflow.stores.postgres.columns import ORDERINGS, ORDERS, STATES, record_of, storable
from microflow.stores.postgres.errors import translated
from microflow.stores.postgres.inbox import InboxInTransaction
from microflow.stores.postgres.names import Names
from microflow.stores.postgres.notifications import Channel
from microflow.stores.postgres.parking import ParkingInTransaction
from microflow.stores.postgres.session import Row, Session
from microflow.stores.postgres.sessions import Sessions

SQL = statements(Path(__file__).with_name("dead_letters.sql"))


class PostgresDeadLetters:
    """`microflow.ports.DeadLetters`."""

    def __init__(self, sessions: Sessions, names: Names, parked: Channel) -> None:
        self._sessions = sessions
        self._names = names
        self._parked = parked

    async def list(self, *, handler: str | None = None, limit: int = 100, after: int = 0) -> Sequence[DeadLetter]:
        rows = await self._sessions.fetch(SQL["list"], self._names.service, after, handler, limit)
        return [_dead_letter(row) for row in rows]

    async def get(self, identifier: int) -> DeadLetter | None:
        rows = await self._sessions.fetch(SQL["get"], self._names.service, [identifier])
        return _dead_letter(rows[0]) if rows else None

    async def of(self, claims: Collection[ClaimKey]) -> Mapping[ClaimKey, int]:
        handlers, digests = [claim.handler for claim in claims], [claim.digest for claim in claims]
        rows = await self._sessions.fetch(SQL["of"], self._names.service, handlers, digests)
        return {ClaimKey(row["handler"], row["digest"]): row["id"] for row in rows}

    async def redrive(self, identifiers: Collection[int], *, now: datetime) -> frozenset[int]:
        service = self._names.service
        async with self._sessions.session() as session:
            with translated():
                await session.script("begin")
                begun = await session.fetch(SQL["begin to redrive"], service, list(identifiers))
                redriven = frozenset(row["id"] for row in begun)
                if redriven:
                    # By ascending id, so that those of one key come back in the order in which they were given up.
                    rows = await session.fetch(SQL["get"], service, sorted(redriven))
                    letters = [_dead_letter(row) for row in rows]
                    parking = ParkingInTransaction(session, self._names)
                    await InboxInTransaction(session, self._names, parking).reopen(letters)
                    await parking.bring_back(letters, now=now)
                await session.script("commit")
        if redriven:
            self._parked.tell()
        return redriven

    async def purge(self, *, failed_before: datetime, limit: int) -> int:
        return len(await self._sessions.fetch(SQL["purge"], self._names.service, failed_before, limit))


class DeadLettersInTransaction:
    """What a transaction does to dead letters."""

    def __init__(self, session: Session, names: Names) -> None:
        self._session = session
        self._names = names

    async def bury(self, letters: Sequence[DeadLetter]) -> None:
        """Store dead letters; one that was redriven and failed again is `dead` again, under the id it had."""
        letters = list({letter.claim: letter for letter in letters}.values())
        records = [letter.record for letter in letters]
        handlers = await self._names.handlers({letter.claim.handler for letter in letters})
        partitions = await self._names.partitions({record.source for record in records})
        await self._session.fetch_planned_anew(
            SQL["bury"],
            self._names.service,
            [handlers[letter.claim.handler] for letter in letters],
            [letter.claim.digest for letter in letters],
            [partitions[record.source] for record in records],
            [record.key for record in records],
            [ORDERINGS[letter.order] for letter in letters],
            [storable(letter.reason) for letter in letters],
            [letter.attempts for letter in letters],
            [letter.first_failed_at for letter in letters],
            [letter.failed_at for letter in letters],
            [letter.content for letter in letters],
            [record.offset for record in records],
            [record.timestamp for record in records],
            [storable(letter.error) for letter in letters],
            [storable(letter.trace) for letter in letters],
            [encode_headers(record.headers) for record in records],
            [record.value for record in records],
        )


def _dead_letter(row: Row) -> DeadLetter:
    return DeadLetter(
        claim=ClaimKey(row["handler"], row["digest"]),
        record=record_of(row),
        reason=row["reason"],
        error=row["error"],
        trace=row["trace"],
        attempts=row["attempts"],
        first_failed_at=row["first_failed_at"],
        failed_at=row["failed_at"],
        order=ORDERS[row["ordering"]],
        content=row["content"],
        id=row["id"],
        state=STATES[row["state"]],
    )
