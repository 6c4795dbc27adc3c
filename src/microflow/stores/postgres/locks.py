"""Advisory locks, which hold until a transaction ends: each kind has a first number of its own."""

from __future__ import annotations

import zlib
from collections.abc import Collection
from functools import lru_cache

from microflow.ports import OrderingKey

SCHEMA = 0x6D660000
"""Whoever makes or changes tables: ours, and the services' own."""
LEASES = 0x6D660001
"""Whoever asks for shards of the outbox."""
PARTITION = 0x6D660002
"""The epoch of a partition: shared by the transactions under it, alone for who begins a new one."""
OUTBOX_KEY = 0x6D660003
"""A topic and key of the outbox: from before a position is taken until it is committed."""
PARKED_KEY = 0x6D660004
"""A topic and key of a service's parked events: whoever parks or takes away."""

REGISTRY = 0x6D660005
"""What is known about handlers and partitions: shared by the transactions that rely on it, alone for who changes it."""

SHARED = "pg_advisory_xact_lock_shared"
ALONE = "pg_advisory_xact_lock"


def lock(how: str, kind: int, numbers: Collection[int] = (0,)) -> str:
    """The statement that takes locks in ascending order, so that nobody waits for another in a ring."""
    array = ",".join(map(str, sorted(numbers)))
    return f"select {how}({kind}, number) from unnest(array[{array}]::integer[]) as number"


def number_of(key: OrderingKey) -> int:
    """The second number of a key's lock, as PostgreSQL's integer. Every process has to compute the same."""
    number = zlib.crc32(key.key, _seed_of(key.topic))
    return number - (1 << 32) if number >= 1 << 31 else number


@lru_cache(maxsize=1024)
def _seed_of(topic: str) -> int:
    return zlib.crc32(topic.encode())
