"""Identity: the digest a claim is made by, and the ids of emitted events, derived from what caused them.

Ids have the layout of UUID version 7 (RFC 9562): 48 bits of milliseconds, then 74 bits that are random for a root
event and a keyed hash for an emitted one, so that an execution that is repeated emits the same ids again.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from hashlib import blake2b
from typing import TypeAlias

RandomBits: TypeAlias = Callable[[int], int]
"""Returns an integer of so many random bits, as `random.Random.getrandbits`."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_VERSION_7 = 0x7 << 76
_VARIANT = 0x2 << 62
UUID_7 = re.compile("[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}", re.IGNORECASE | re.ASCII)


def digest_of(source: str, identifier: str) -> bytes:
    """16 bytes that stand for an event: its source and id, which CloudEvents promises to be unique together.

    Those of an id with the time in it (UUID version 7) begin with that time: claims of events that come together
    stand together in the inbox, and a transaction touches a few of its pages instead of one for every claim.
    """
    named = f"{len(source)}:{source}{identifier}".encode()
    if UUID_7.fullmatch(identifier):
        return bytes.fromhex(identifier[:8] + identifier[9:13]) + blake2b(named, digest_size=10).digest()
    return blake2b(named, digest_size=16).digest()


def content_of(value: bytes | None) -> bytes:
    """8 bytes that stand for a record's value, to notice the same id with other bytes."""
    return blake2b(value or b"", digest_size=8, person=b"value" if value is not None else b"none").digest()


def root_id(now: datetime, random_bits: RandomBits) -> str:
    """A fresh id for an event that nothing caused."""
    return _uuid7(_time_part(_milliseconds(now)), random_bits(74))


def derived_id(
    cause: bytes, cause_id: str, cause_time: datetime, *, service: str, handler: str, event_type: str, ordinal: int
) -> str:
    """The id of the `ordinal`-th event of a type that a handler emits because of a cause (its digest and id).

    The time in it is the cause's, not the clock's: an execution repeated tomorrow derives the same id.
    """
    named = _emission(service, handler, event_type, ordinal)
    hashed = blake2b(named, key=cause, digest_size=10, person=b"emitted").digest()
    time = cause_id[:13].lower() if UUID_7.fullmatch(cause_id) else _time_part(_milliseconds(cause_time))
    return _uuid7(time, int.from_bytes(hashed, "big"))


def id_of_position(position: bytes, time: datetime) -> str:
    """The id of an event that brought none: the same whenever its record (the digest of its position) is read."""
    hashed = blake2b(b"position", key=position, digest_size=10).digest()
    return _uuid7(_time_part(_milliseconds(time)), int.from_bytes(hashed, "big"))


def idempotency_key(cause: bytes, *, service: str, handler: str, label: str) -> str:
    """A key for a call to the outside world: the same for every attempt, another one for every handler and label."""
    named = _unambiguous(service, handler, label)
    return blake2b(named, key=cause, digest_size=16, person=b"idempotency").hexdigest()


@lru_cache(maxsize=1024)
def _emission(service: str, handler: str, event_type: str, ordinal: int) -> bytes:
    return _unambiguous(service, handler, event_type, str(ordinal))


def _unambiguous(*texts: str) -> bytes:
    # With their lengths, so that ("a", "bc") and ("ab", "c") differ whatever characters stand in them.
    return "".join(f"{len(text)}:{text}" for text in texts).encode(errors="surrogatepass")


def _uuid7(time: str, bits: int) -> str:
    """The id whose text begins with a time, and has the lowest 74 of these bits in what is left of it."""
    head, tail = bits >> 62 & 0xFFF, bits & ((1 << 62) - 1)
    text = f"{_VERSION_7 | head << 64 | _VARIANT | tail:020x}"
    return f"{time}-{text[:4]}-{text[4:8]}-{text[8:]}"


def _time_part(milliseconds: int) -> str:
    text = f"{milliseconds & ((1 << 48) - 1):012x}"
    return f"{text[:8]}-{text[8:]}"


def _milliseconds(instant: datetime) -> int:
    # In whole numbers: a float of this size is off by a millisecond now and then. Before 1970 there is no UUIDv7.
    return max(0, (instant - _EPOCH) // timedelta(milliseconds=1))
