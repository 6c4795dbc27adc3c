"""The claims: which handler has taken which event."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

from microflow.embedded.statements import statements
from microflow.errors import StoreError
from microflow.ports import Claim, ClaimKey, ClaimStatus, DeadLetter, TopicPartition
from microflow.stores.postgres.columns import STATUSES
from microflow.stores.postgres.kinds import kinds_of
from microflow.stores.postgres.names import Names
from microflow.stores.postgres.parking import Gone, ParkingInTransaction
from microflow.stores.postgres.session import Session
from microflow.stores.postgres.sessions import Sessions

SQL = statements(Path(__file__).with_name("inbox.sql"))
PURGED_AT_ONCE = 1000
LONG_AGO = datetime.min.replace(tzinfo=UTC)


class PostgresInbox:
    """`microflow.ports.Inbox`."""

    def __init__(self, sessions: Sessions, names: Names) -> None:
        self._sessions = sessions
        self._names = names
        self._purged: dict[int, datetime] = {}  # how far, of the partitions where there may be more

    async def seen(self, keys: Collection[ClaimKey]) -> Mapping[ClaimKey, bytes]:
        return (await self.look_up(keys))[0] if keys else {}

    async def look_up(self, keys: Collection[ClaimKey]) -> tuple[Mapping[ClaimKey, bytes], bool]:
        """The claims that are there, and whether anything is parked that others wait for."""
        numbers = await self._names.handlers({key.handler for key in keys})
        asked = list(keys)
        handlers, digests = [numbers[key.handler] for key in asked], [key.digest for key in asked]
        rows = await self._sessions.fetch(SQL["seen"], self._names.service, handlers, digests)
        seen = {asked[place - 1]: content for place, content in rows if place is not None}
        return seen, len(seen) < len(rows)

    async def claimed_from(self, handler: str, offsets: Mapping[TopicPartition, int]) -> bool:
        rows = await self._sessions.fetch(
            SQL["claimed from"],
            self._names.service,
            handler,
            [partition.topic for partition in offsets],
            [partition.partition for partition in offsets],
            list(offsets.values()),
        )
        return bool(rows)

    async def purge(self, *, completed_before: datetime, limit: int) -> int:
        purged = 0
        for partition, watermark in await self._sessions.fetch(SQL["passed partitions"], self._names.service):
            while purged < limit:
                wanted = min(limit - purged, PURGED_AT_ONCE)
                # A transaction for each thousand, so that nobody waits long for a row.
                behind = self._purged.pop(partition, LONG_AGO)
                args = (partition, completed_before, watermark, wanted, behind)
                gone = await self._sessions.fetch(SQL["purge"], *args)
                purged += len(gone)
                if len(gone) < wanted:
                    break
                self._purged[partition] = max(row["completed_at"] for row in gone)
        return purged


class InboxInTransaction:
    """What a transaction does to claims. `transaction` is the transaction's own number, once it has claimed."""

    def __init__(self, session: Session, names: Names, parking: ParkingInTransaction) -> None:
        self._session = session
        self._names = names
        self._parking = parking
        self.transaction: str | None = None

    async def claim(self, claims: Sequence[Claim], *, now: datetime) -> Sequence[bool]:
        """Enter claims; true for each one granted. One statement, whatever their number."""
        if not claims:
            return []
        if not any(claim.resumes for claim in claims):
            return await self._enter(claims, now)
        granted = [False] * len(claims)
        for resumes, method in ((False, self._enter), (True, self._resume)):
            places = [place for place, claim in enumerate(claims) if claim.resumes is resumes]
            if places:
                answers = await method([claims[place] for place in places], now)
                for place, is_granted in zip(places, answers, strict=True):
                    granted[place] = is_granted
        return granted

    async def set_status(
        self, keys: Collection[ClaimKey], status: ClaimStatus, completed_at: Sequence[datetime]
    ) -> None:
        """Change claims that are there."""
        handlers = await self._names.handlers({key.handler for key in keys})
        await self._session.fetch_planned_anew(
            SQL["set status"],
            [handlers[key.handler] for key in keys],
            [key.digest for key in keys],
            STATUSES[status],
            list(completed_at),
        )

    async def reopen(self, letters: Sequence[DeadLetter]) -> None:
        """Make the claims of dead letters those of parked events."""
        handlers = await self._names.handlers({letter.claim.handler for letter in letters})
        partitions = await self._names.partitions({letter.record.source for letter in letters})
        await self._session.fetch_planned_anew(
            SQL["reopen"],
            [handlers[letter.claim.handler] for letter in letters],
            [letter.claim.digest for letter in letters],
            [letter.content for letter in letters],
            [partitions[letter.record.source] for letter in letters],
            [letter.record.offset for letter in letters],
        )

    async def _enter(self, claims: Sequence[Claim], now: datetime) -> Sequence[bool]:
        kinds, kind_of = kinds_of([(claim.key.handler, claim.status, claim.source) for claim in claims])
        handlers = await self._names.handlers({handler for handler, _, _ in kinds})
        partitions = await self._names.partitions({source for _, _, source in kinds})
        (told,) = await self._session.fetch(
            SQL["claim"],
            kind_of,
            [claim.key.digest for claim in claims],
            [claim.content for claim in claims],
            [claim.offset for claim in claims],
            [handlers[handler] for handler, _, _ in kinds],
            [STATUSES[status] for _, status, _ in kinds],
            [partitions[source] for _, _, source in kinds],
            now,
        )
        if self.transaction not in {None, told["transaction"]}:
            raise StoreError("The transaction was ended behind microflow's back.")
        self.transaction = told["transaction"]
        if told["handlers"] is None:
            return [True] * len(claims)
        granted = set(zip(told["handlers"], told["digests"], strict=True))
        return _first_of_each([(handlers[claim.key.handler], claim.key.digest) for claim in claims], granted)

    async def _resume(self, claims: Sequence[Claim], now: datetime) -> Sequence[bool]:
        handlers = await self._names.handlers({claim.key.handler for claim in claims})
        partitions = await self._names.partitions({claim.source for claim in claims})
        first = list({claim.key: claim for claim in reversed(claims)}.values())
        numbers, digests = [handlers[claim.key.handler] for claim in first], [claim.key.digest for claim in first]
        await self._parking.lock_parked(numbers, digests)
        found = await self._session.fetch_planned_anew(
            SQL["resume"],
            numbers,
            digests,
            [STATUSES[claim.status] for claim in first],
            [claim.content for claim in first],
            [partitions[claim.source] for claim in first],
            [claim.offset for claim in first],
            now,
        )
        await self._parking.free_behind(
            Gone(row["topic"], row["key"], row["handler"], row["ordering"])
            for row in found
            if row["status"] != STATUSES["parked"]
        )
        granted = {(row["handler"], row["digest"]) for row in found}
        return _first_of_each([(handlers[claim.key.handler], claim.key.digest) for claim in claims], granted)


def _first_of_each(keys: Sequence[tuple[int, bytes]], granted: set[tuple[int, bytes]]) -> Sequence[bool]:
    """Whether each was granted: of the same claim twice, the first."""
    left = set(granted)
    answers = []
    for key in keys:
        answers.append(key in left)
        left.discard(key)
    return answers
