"""Which records come next: where a member reads in each of its partitions, and batches that are fair to all of them."""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Mapping
from datetime import timedelta

from microflow.embedded.headers import decode_headers
from microflow.errors import TransportError
from microflow.ports import Record, TopicPartition
from microflow.transports.local.format import SQL
from microflow.transports.local.log import EPOCH, OFFSET_BITS, Log

MOST_BYTES = 16 * 1024 * 1024
"""A batch ends behind the record that brings it above this, so that large records cannot fill the memory."""

OFFSET_MASK = (1 << OFFSET_BITS) - 1


class Reading:
    """The partitions a member has, and its place in each. None is read before somebody has sought a place in it."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._ids: Mapping[TopicPartition, int] = {}
        self._places: dict[TopicPartition, int] = {}
        self._paused: set[TopicPartition] = set()
        self._turn = 0

    @property
    def partitions(self) -> frozenset[TopicPartition]:
        return frozenset(self._ids)

    def grant(self, partitions: Mapping[TopicPartition, int]) -> None:
        """Have these partitions, by id, and no others."""
        self._ids = partitions
        self._places.clear()
        self._paused.clear()

    def seek(self, partition: TopicPartition, offset: int) -> None:
        if partition not in self._ids:
            raise TransportError(f"cannot seek in {partition.topic}[{partition.partition}]: it is not assigned")
        self._places[partition] = max(offset, 0)

    def pause(self, partitions: Collection[TopicPartition]) -> None:
        self._paused.update(partition for partition in partitions if partition in self._ids)

    def resume(self, partitions: Collection[TopicPartition]) -> None:
        self._paused.difference_update(partitions)

    def read(self, *, max_records: int) -> list[Record]:
        """The next records, as far as there are any; each is returned once."""
        waiting = self._waiting()
        if not waiting or max_records < 1:
            return []
        records: list[Record] = []
        room = MOST_BYTES
        with self._log.reading() as connection:
            for partition, quota in share(self._in_turn(waiting), max_records).items():
                room -= self._read_partition(connection, partition, records, limit=quota, room=room)
                if room <= 0:
                    break
        return records

    def _waiting(self) -> dict[TopicPartition, int]:
        """How many records there are to read, of each partition that has any."""
        reading = [partition for partition in self._places if partition not in self._paused]
        if not reading:
            return {}
        bounds = self._log.bounds(self._ids[partition] for partition in reading)
        waiting: dict[TopicPartition, int] = {}
        for partition in reading:
            beginning, ending = bounds[self._ids[partition]]
            if self._places[partition] < beginning:
                self._places[partition] = beginning
            if self._places[partition] < ending:
                waiting[partition] = ending - self._places[partition]
        return waiting

    def _in_turn(self, waiting: dict[TopicPartition, int]) -> dict[TopicPartition, int]:
        """The same, beginning with another partition each time."""
        if len(waiting) < 2:
            return waiting
        self._turn += 1
        names = list(waiting)
        first = self._turn % len(names)
        return {name: waiting[name] for name in names[first:] + names[:first]}

    def _read_partition(
        self, connection: sqlite3.Connection, partition: TopicPartition, records: list[Record], *, limit: int, room: int
    ) -> int:
        topic, number = partition
        first = self._ids[partition] << OFFSET_BITS
        span = (first | self._places[partition], first + (1 << OFFSET_BITS), limit)
        size, offset = 0, self._places[partition] - 1
        last_timestamp, instant = -1, EPOCH
        rows = connection.execute(SQL["records"], span)
        for row_id, timestamp, key, value, blob in rows:
            offset = row_id & OFFSET_MASK
            if timestamp != last_timestamp:
                last_timestamp, instant = timestamp, EPOCH + timedelta(microseconds=timestamp)
            records.append(Record(topic, number, key, value, decode_headers(blob), instant, offset))
            size += len(blob) + len(value or b"")
            if size >= room:
                break
        rows.close()
        self._places[partition] = offset + 1
        return size


def share(waiting: Mapping[TopicPartition, int], room: int) -> dict[TopicPartition, int]:
    """How many records to take of each partition: alike, and what one does not need goes to the others.

    If there is not room for one of each, those that come first have it.
    """
    chosen = list(waiting.items())[:room]
    quotas = dict(chosen)
    by_need = sorted(chosen, key=lambda each: each[1])
    for others, (partition, count) in zip(range(len(chosen), 0, -1), by_need, strict=True):
        quotas[partition] = min(count, room // others)
        room -= quotas[partition]
    return quotas
