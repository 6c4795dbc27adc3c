"""Which partition a key belongs to: Kafka's default partitioner, so that a key lands on the same one everywhere."""

from __future__ import annotations

SEED = 0x9747B28C
MULTIPLIER = 0x5BD1E995
MASK = 0xFFFFFFFF


class Partitioner:
    """Remembers the hashes of the keys it saw last: a murmur2 costs microseconds, a look-up next to nothing."""

    def __init__(self, *, remember: int = 65_536) -> None:
        self._hashes: dict[bytes, int] = {}
        self._remember = remember

    def partition(self, key: bytes, *, partitions: int) -> int:
        """The partition, from 0 to `partitions` - 1, where Kafka's own clients put this key."""
        positive = self._hashes.get(key)
        if positive is None:
            positive = self._hash(key)
        return positive % partitions

    def _hash(self, key: bytes) -> int:
        if len(self._hashes) >= self._remember:
            self._hashes.clear()
        positive = self._hashes[key] = murmur2(key) & 0x7FFFFFFF
        return positive


def murmur2(data: bytes) -> int:
    """The 32 bits of `org.apache.kafka.common.utils.Utils.murmur2`, as an unsigned number."""
    length = len(data)
    value = SEED ^ length
    whole = length & ~3
    for start in range(0, whole, 4):
        block = int.from_bytes(data[start : start + 4], "little") * MULTIPLIER & MASK
        block = (block ^ block >> 24) * MULTIPLIER & MASK
        value = value * MULTIPLIER & MASK ^ block
    if whole < length:
        value = (value ^ int.from_bytes(data[whole:], "little")) * MULTIPLIER & MASK
    value = (value ^ value >> 13) * MULTIPLIER & MASK
    return value ^ value >> 15
