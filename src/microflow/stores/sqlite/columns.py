"""How our own tables hold instants, headers and the words of a small vocabulary."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta

from microflow.ports import ClaimStatus, DeadLetterState, Headers, Order

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


def encode_headers(headers: Headers) -> bytes:
    """Headers as one blob: how many parts, the length of each, then names and values in turn, end to end."""
    parts = [part for name, value in headers for part in (name.encode(), value)]
    return struct.pack(f">I{len(parts)}I", len(parts), *map(len, parts)) + b"".join(parts)


def decode_headers(blob: bytes) -> Headers:
    """The headers that `encode_headers` was given."""
    (count,) = struct.unpack_from(">I", blob)
    lengths = struct.unpack_from(f">{count}I", blob, 4)
    parts = struct.unpack_from("".join(f"{length}s" for length in lengths), blob, 4 + 4 * count)
    return tuple((name.decode(), value) for name, value in zip(parts[::2], parts[1::2], strict=True))
