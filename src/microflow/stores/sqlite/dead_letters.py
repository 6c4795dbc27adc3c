"""Events that were given up, and their way back."""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from microflow.embedded.database import Database
from microflow.embedded.headers import decode_headers, encode_headers
from microflow.embedded.statements import statements
from microflow.ports import ClaimKey, DeadLetter, Record
from microflow.stores.sqlite.columns import (
    ORDERINGS,
    ORDERS,
    STATES,
    instant,
    instant_or_none,
    microseconds,
    microseconds_or_none,
)
from microflow.stores.sqlite.inbox import InboxInTransaction
from microflow.stores.sqlite.names import Names, NamesInTransaction
from microflow.stores.sqlite.parking import ParkingInTransaction

SQL = statements(Path(__file__).with_name("dead_letters.sql"))


class SqliteDeadLetters:
    """`microflow.ports.DeadLetters`."""

    def __init__(self, database: Database, names: Names) -> None:
        self._database = database
        self._names = names

    async def list(self, *, handler: str | None = None, limit: int = 100, after: int = 0) -> Sequence[DeadLetter]:
        rows = self._database.read(SQL["list"], (self._names.service, after, handler, limit))
        return [_dead_letter(row) for row in rows]

    async def get(self, identifier: int) -> DeadLetter | None:
        rows = self._database.read(SQL["get"], (self._names.service, identifier))
        return _dead_letter(rows[0]) if rows else None

    async def of(self, claims: Collection[ClaimKey]) -> Mapping[ClaimKey, int]:
        found = ((claim, self._database.read(SQL["of"], (self._names.service, *claim))) for claim in claims)
        return {claim: rows[0][0] for claim, rows in found if rows}

    async def redrive(self, identifiers: Collection[int], *, now: datetime) -> frozenset[int]:
        async with self._database.writing() as connection:
            names = NamesInTransaction(self._names, connection)
            dead_letters = DeadLettersInTransaction(connection, names)
            parking = ParkingInTransaction(connection, names)
            inbox = InboxInTransaction(connection, names, parking)
            # By ascending id, so that those of one key come back in the order in which they were given up.
            letters = [dead_letters.begin_to_redrive(identifier) for identifier in sorted(identifiers)]
            redriven = [letter for letter in letters if letter is not None]
            for letter in redriven:
                inbox.reopen(letter)
                parking.bring_back(letter, now=now)
        return frozenset(letter.id for letter in redriven)

    async def purge(self, *, failed_before: datetime, limit: int) -> int:
        async with self._database.writing() as connection:
            args = (self._names.service, microseconds(failed_before), limit)
            return connection.execute(SQL["purge"], args).rowcount


class DeadLettersInTransaction:
    """What a transaction does to dead letters."""

    def __init__(self, connection: sqlite3.Connection, names: NamesInTransaction) -> None:
        self._connection = connection
        self._names = names

    def bury(self, letter: DeadLetter) -> None:
        """Store a dead letter; one that was redriven and failed again is `dead` again, under the id it had."""
        record = letter.record
        row = (
            self._names.service,
            self._names.handler(letter.claim.handler),
            letter.claim.digest,
            self._names.partition(record.source),
            record.key,
            ORDERINGS[letter.order],
            letter.reason,
            letter.attempts,
            microseconds(letter.first_failed_at),
            microseconds(letter.failed_at),
            letter.content,
            record.offset,
            microseconds_or_none(record.timestamp),
            letter.error,
            letter.trace,
            encode_headers(record.headers),
            record.value,
        )
        self._connection.execute(SQL["bury"], row)

    def begin_to_redrive(self, identifier: int) -> DeadLetter | None:
        """Mark a dead letter as being redriven; None if it is not `dead`, so of two who ask one gets it."""
        args = (self._names.service, identifier)
        if not self._connection.execute(SQL["begin to redrive"], args).fetchall():
            return None
        return _dead_letter(self._connection.execute(SQL["get"], args).fetchone())

    def has_succeeded(self, claim: ClaimKey) -> None:
        """A parked event has had its effect; if it was a redriven dead letter, that is done."""
        self._connection.execute(SQL["redriven has succeeded"], (self._names.handler(claim.handler), claim.digest))


def _dead_letter(row: tuple[Any, ...]) -> DeadLetter:
    identifier, handler, digest, state, topic, partition, key, ordering, reason, attempts, first_failed_at = row[:11]
    failed_at, content, offset, timestamp, error, trace, headers, value = row[11:]
    return DeadLetter(
        claim=ClaimKey(handler, digest),
        record=Record(topic, partition, key, value, decode_headers(headers), instant_or_none(timestamp), offset),
        reason=reason,
        error=error,
        trace=trace,
        attempts=attempts,
        first_failed_at=instant(first_failed_at),
        failed_at=instant(failed_at),
        order=ORDERS[ordering],
        content=content,
        id=identifier,
        state=STATES[state],
    )
