"""How our own tables hold instants and the words of a small vocabulary."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta

from microflow.ports import ClaimStatus, DeadLetterState, Order

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MICROSECOND = timedelta(microseconds=1)

STATUSES: Mapping[ClaimStatus, int] = {"done": 0, "parked": 1, "dead": 2}
ORDERS: tuple[Order, ...] = ("none", "handler", "key")
ORDERINGS: Mapping[Order, int] = {order: number for number, order in enumerate(ORDERS)}
STATES: tuple[DeadLetterState, ...] = ("dead", "redriving", "done")


def microseconds(instant: datetime) -> int:
    """An aware instant as microseconds since 1970: exact, comparable, eight bytes."""
    return (instant - EPOCH) // MICROSECOND


def microseconds_or_none(instant: datetime | None) -> int | None:
    return None if instant is None else microseconds(instant)


def instant(value: int) -> datetime:
    return EPOCH + timedelta(microseconds=value)


def instant_or_none(value: int | None) -> datetime | None:
    return None if value is None else instant(value)
