"""Ablations: what carries the promises, taken out one at a time. Without it the checker must find them broken."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any, cast

from microflow.errors import TransportError
from microflow.intake import Intake
from microflow.lanes import Lane
from microflow.outgoing import Outgoing
from microflow.ports import (
    Appended,
    Changes,
    ClaimKey,
    OutboxRow,
    Record,
    Store,
    TopicPartition,
    Transaction,
    Transport,
)
from microflow.stores.postgres import inbox as postgres_inbox
from microflow.stores.postgres.transaction import PostgresTransaction
from microflow.stores.sqlite import inbox, partitions
from microflow.watermarks import Watermarks
from tests.crash.orders import Orders


def install(orders: Orders) -> None:
    """Break this process."""
    match orders.ablation:
        case "no inbox":
            (_grant_every_claim_in_postgres if orders.database else _grant_every_claim)()
        case "no fence":
            (_fence_nothing_in_postgres if orders.database else _fence_nothing)()
        case "offsets by a lane's own maximum":
            setattr(Watermarks, "after", _own_maximum)  # noqa: B010
        case "relay without order":
            setattr(Outgoing, "_acknowledge", _go_on_when_one_is_refused)  # noqa: B010


def store_of(orders: Orders, store: Store) -> Store:
    """The store of a process: with so many lanes, and with its outbox inside its transactions or not."""
    if orders.lanes != 1:
        setattr(type(store), "lanes", orders.lanes)  # noqa: B010
        setattr(Intake, "lane_of", _lane_by_checksum)  # noqa: B010
    if orders.ablation == "outbox outside the transaction":
        return cast(Store, OutboxOutside(store))
    return store


def transport_of(orders: Orders, transport: Transport) -> Transport:
    """The log of a process, which may refuse one record once."""
    return cast(Transport, Refusing(transport, orders.refusal)) if orders.refusal else transport


# ── no inbox ──────────────────────────────────────────────────────────────────────────────────────────────────────


def _grant_every_claim() -> None:
    claim = inbox.InboxInTransaction.claim

    def claim_all(self: inbox.InboxInTransaction, claims: Sequence[Any], **keywords: Any) -> Sequence[bool]:
        claim(self, claims, **keywords)
        return [True] * len(claims)

    async def see_nothing(self: inbox.SqliteInbox, keys: Collection[ClaimKey]) -> Mapping[ClaimKey, bytes]:
        return {}

    setattr(inbox.InboxInTransaction, "claim", claim_all)  # noqa: B010
    setattr(inbox.SqliteInbox, "seen", see_nothing)  # noqa: B010


def _grant_every_claim_in_postgres() -> None:
    claim = postgres_inbox.InboxInTransaction.claim

    async def claim_all(
        self: postgres_inbox.InboxInTransaction, claims: Sequence[Any], **keywords: Any
    ) -> Sequence[bool]:
        await claim(self, claims, **keywords)
        return [True] * len(claims)

    async def see_nothing(
        self: postgres_inbox.PostgresInbox, keys: Collection[ClaimKey]
    ) -> tuple[Mapping[ClaimKey, bytes], bool]:
        return {}, True

    setattr(postgres_inbox.InboxInTransaction, "claim", claim_all)  # noqa: B010
    setattr(postgres_inbox.PostgresInbox, "look_up", see_nothing)  # noqa: B010


# ── no fence ──────────────────────────────────────────────────────────────────────────────────────────────────────


def _fence_nothing() -> None:
    setattr(partitions, "fence", lambda *_: None)  # noqa: B010 - mypy knows what it was


def _fence_nothing_in_postgres() -> None:
    fence = PostgresTransaction.fence

    async def fence_nothing(self: PostgresTransaction, epochs: Mapping[TopicPartition, int], **keywords: Any) -> None:
        await fence(self, {}, **keywords)

    setattr(PostgresTransaction, "fence", fence_nothing)  # noqa: B010


# ── outbox outside the transaction ────────────────────────────────────────────────────────────────────────────────


class OutboxOutside:
    """A store that writes emitted events soon after the transaction that they belong to."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._tasks: set[asyncio.Task[None]] = set()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    @asynccontextmanager
    async def transaction(self, *, pause: timedelta | None = None) -> AsyncIterator[Any]:
        async with self._store.transaction(pause=pause) as transaction:
            without = WithoutOutbox(transaction)
            yield without
        if without.rows:
            self._tasks.add(asyncio.get_running_loop().create_task(self._append(without.rows)))

    async def _append(self, rows: list[OutboxRow]) -> None:
        async with self._store.transaction() as transaction:
            await transaction.write(Changes(outbox=rows))


class WithoutOutbox:
    """A transaction that keeps its emitted events for later."""

    def __init__(self, transaction: Transaction) -> None:
        self._transaction = transaction
        self.rows: list[OutboxRow] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transaction, name)

    async def write(self, changes: Changes) -> Sequence[Appended]:
        self.rows, changes.outbox = [row._replace(publisher=None) for row in changes.outbox], []
        await self._transaction.write(changes)
        changes.outbox = self.rows
        return [Appended(-1, has_publisher=False) for _ in self.rows]


# ── offsets by a lane's own maximum ───────────────────────────────────────────────────────────────────────────────


def _own_maximum(self: Watermarks, finished: Mapping[TopicPartition, Collection[int]]) -> dict[TopicPartition, int]:
    return {partition: max(offsets) + 1 for partition, offsets in finished.items() if offsets}


def _lane_by_checksum(self: Intake, record: Record) -> Lane:
    # bytes hash differently in every process, and the test must know which keys share a lane.
    lanes = self._lanes
    return lanes[zlib.crc32(record.key or b"") % len(lanes)]


# ── relay without order ───────────────────────────────────────────────────────────────────────────────────────────


def _go_on_when_one_is_refused(self: Outgoing, wave: Sequence[Any], errors: Sequence[TransportError | None]) -> None:
    """A relay that publishes each row by itself, and later ones although an earlier one of their key was refused."""
    acknowledged = []
    for entry, error in zip(wave, errors, strict=True):
        if error is None:
            acknowledged.append(entry.position)
        else:
            self._let_go(entry)
            self._wake()
    self._forget(acknowledged)


SLOWLY = 0.3
"""Seconds within which a relay reads the rows behind the one that is refused."""


class Refusing:
    """A log that refuses one record once, slowly, as a broker without a leader does; what is behind it in its partition
    too."""

    def __init__(self, transport: Transport, ordinal: int) -> None:
        self._transport = transport
        self._ordinal = ordinal
        self._given = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    async def publish(self, records: Sequence[Record]) -> Sequence[TransportError | None]:
        refused: TopicPartition | None = None
        taken: list[Record] = []
        outcome: list[TransportError | None] = []
        for record in records:
            self._given += 1
            if self._given == self._ordinal:
                refused = record.source
            if record.source == refused:
                outcome.append(TransportError("not the leader any more"))
            else:
                outcome.append(None)
                taken.append(record)
        errors = iter(await self._transport.publish(taken))
        if refused is not None:
            await asyncio.sleep(SLOWLY)
        return [next(errors) if each is None else each for each in outcome]
