"""The claims: which handler has taken which event."""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from pathlib import Path

from microflow.embedded.database import Database
from microflow.embedded.statements import statements
from microflow.ports import Claim, ClaimKey, ClaimStatus, DeadLetter, TopicPartition
from microflow.stores.sqlite.columns import STATUSES, microseconds
from microflow.stores.sqlite.names import Names, NamesInTransaction
from microflow.stores.sqlite.parking import ParkingInTransaction

SQL = statements(Path(__file__).with_name("inbox.sql"))
PURGED_AT_ONCE = 1000


class SqliteInbox:
    """`microflow.ports.Inbox`."""

    def __init__(self, database: Database, names: Names) -> None:
        self._database = database
        self._names = names

    async def seen(self, keys: Collection[ClaimKey]) -> Mapping[ClaimKey, bytes]:
        seen: dict[ClaimKey, bytes] = {}
        with self._database.reading() as connection:
            for key in keys:
                handler = self._names.find_handler(connection, key.handler)
                row = connection.execute(SQL["content"], (handler, key.digest)).fetchone()
                if row is not None:
                    seen[key] = row[0]
        return seen

    async def claimed_from(self, handler: str, offsets: Mapping[TopicPartition, int]) -> bool:
        service = self._names.service
        return any(
            self._database.read(SQL["claimed from"], (service, handler, *partition, offset))
            for partition, offset in offsets.items()
        )

    async def purge(self, *, completed_before: datetime, limit: int) -> int:
        before = microseconds(completed_before)
        purged = 0
        for partition, watermark in self._database.read(SQL["passed partitions"], (self._names.service,)):
            while purged < limit:
                wanted = min(limit - purged, PURGED_AT_ONCE)
                # A transaction for each thousand, so that nobody waits long for the write lock.
                async with self._database.writing() as connection:
                    gone = connection.execute(SQL["purge"], (partition, before, watermark, wanted)).rowcount
                purged += gone
                if gone < wanted:
                    break
        return purged


class InboxInTransaction:
    """What a transaction does to claims."""

    def __init__(
        self, connection: sqlite3.Connection, names: NamesInTransaction, parking: ParkingInTransaction
    ) -> None:
        self._connection = connection
        self._names = names
        self._parking = parking

    def claim(self, claims: Sequence[Claim], *, now: datetime) -> Sequence[bool]:
        """Enter claims; true for each one granted. A statement for each costs 2 µs here, as one for all would."""
        instant = microseconds(now)
        resumed: set[ClaimKey] = set()
        return [
            self._resume(claim, instant, resumed) if claim.resumes else self._insert(claim, instant) for claim in claims
        ]

    def set_status(self, key: ClaimKey, status: ClaimStatus, *, completed_at: datetime | None) -> None:
        instant = None if completed_at is None else microseconds(completed_at)
        args = (STATUSES[status], instant, self._names.handler(key.handler), key.digest)
        self._connection.execute(SQL["set status"], args)

    def reopen(self, letter: DeadLetter) -> None:
        """Make the claim of a dead letter one of a parked event."""
        row = (
            self._names.handler(letter.claim.handler),
            letter.claim.digest,
            STATUSES["parked"],
            letter.content,
            self._names.partition(letter.record.source),
            letter.record.offset,
            None,
        )
        self._connection.execute(SQL["resume"], row)

    def _insert(self, claim: Claim, instant: int) -> bool:
        return self._connection.execute(SQL["claim"], self._row(claim, instant)).rowcount == 1

    def _resume(self, claim: Claim, instant: int, resumed: set[ClaimKey]) -> bool:
        handler = self._names.handler(claim.key.handler)
        if claim.key in resumed or not self._parking.holds(handler, claim.key.digest):
            return False
        resumed.add(claim.key)
        self._connection.execute(SQL["resume"], self._row(claim, instant))
        if claim.status != "parked":
            self._parking.remove(handler, claim.key.digest)
        return True

    def _row(self, claim: Claim, instant: int) -> tuple[int, bytes, int, bytes, int, int, int | None]:
        return (
            self._names.handler(claim.key.handler),
            claim.key.digest,
            STATUSES[claim.status],
            claim.content,
            self._names.partition(claim.source),
            claim.offset,
            None if claim.status == "parked" else instant,
        )
