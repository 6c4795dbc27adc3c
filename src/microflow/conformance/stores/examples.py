"""Claims, records and the like to try a store with."""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

from microflow.ports import (
    Changes,
    Claim,
    ClaimKey,
    ClaimStatus,
    DeadLetter,
    Order,
    OutboxRow,
    Parked,
    Record,
    Store,
    TopicPartition,
)

Failure = TypeVar("Failure", bound=Exception)

NOW = datetime(2030, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
SECOND = timedelta(seconds=1)
ORDERS = TopicPartition("orders", 0)
HANDLER = "take_payment"


def digest(number: int) -> bytes:
    return hashlib.blake2b(str(number).encode(), digest_size=16).digest()


def a_key(number: int, handler: str = HANDLER) -> ClaimKey:
    return ClaimKey(handler, digest(number))


def a_claim(
    number: int,
    handler: str = HANDLER,
    *,
    status: ClaimStatus = "done",
    resumes: bool = False,
    source: TopicPartition = ORDERS,
    content: bytes = b"content",
) -> Claim:
    return Claim(a_key(number, handler), content, source, number, status, resumes)


def a_record(number: int, key: bytes | None = b"order-1", source: TopicPartition = ORDERS) -> Record:
    headers = (("ce_id", str(number).encode()), ("ce_type", b"OrderAccepted"), ("ce_type", b"\x00\xff"), ("empty", b""))
    return Record(*source, key, b"\x00value\xff", headers, NOW, number)


def parked(
    number: int,
    handler: str = HANDLER,
    *,
    key: bytes | None = b"order-1",
    order: Order = "key",
    attempt: int = 1,
    due: datetime | None = NOW,
    source: TopicPartition = ORDERS,
    error: str = "CardTimeout: no answer",
) -> Parked:
    record = a_record(number, key, source)
    return Parked(a_key(number, handler), record, order, attempt, due, b"content", error, NOW - SECOND)


def a_letter(
    number: int, handler: str = HANDLER, *, key: bytes | None = b"order-1", failed_at: datetime = NOW, attempts: int = 5
) -> DeadLetter:
    return DeadLetter(
        a_key(number, handler),
        a_record(number, key),
        "exhausted",
        "CardTimeout: no answer",
        "payments.py:12 take_payment",
        attempts,
        NOW - SECOND,
        failed_at,
        "key",
        b"content",
    )


def an_outbox_row(number: int, key: bytes | None = b"order-1", topic: str = "payments") -> OutboxRow:
    return OutboxRow(topic, key, str(number).encode(), (("ce_id", str(number).encode()),), NOW)


async def commit(
    store: Store,
    claims: Sequence[Claim] = (),
    *,
    parked: Sequence[Parked] = (),
    dead_letters: Sequence[DeadLetter] = (),
    outbox: Sequence[OutboxRow] = (),
    watermarks: Mapping[TopicPartition, int] | None = None,
    now: datetime = NOW,
) -> Sequence[bool]:
    """One transaction of these; returns which claims were granted."""
    async with store.transaction() as transaction:
        granted = await transaction.claim(claims, now=now)
        changes = Changes(list(parked), list(dead_letters), list(outbox), dict(watermarks or {}))
        await transaction.write(changes)
    return granted


async def park(store: Store, *events: Parked) -> None:
    """Claim and park events that were never there before."""
    claims = [Claim(event.claim, event.content, event.record.source, event.record.offset, "parked") for event in events]
    assert all(await commit(store, claims, parked=events))


async def bury(store: Store, *letters: Any) -> None:
    """Claim events that were never there before as dead, with their dead letters."""
    claims = [
        Claim(letter.claim, letter.content, letter.record.source, letter.record.offset, "dead") for letter in letters
    ]
    assert all(await commit(store, claims, dead_letters=letters))


async def due(store: Store, *, now: datetime = NOW, limit: int = 100, source: TopicPartition = ORDERS) -> list[Any]:
    """The numbers and handlers of the events that may run now, by number."""
    found = await store.parking.due([source], now=now, limit=limit)
    return sorted((event.record.offset, event.claim.handler) for event in found)


async def raised(kind: type[Failure], call: Callable[[], Awaitable[object]]) -> Failure:
    """The error of this kind that a call raises; raises AssertionError if it does not."""
    try:
        await call()
    except kind as error:
        return error
    raise AssertionError(f"no {kind.__name__}")
