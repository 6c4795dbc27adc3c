"""Where a consumer reads: its place in each partition, what is paused or rests, and what aiokafka has of it.

Whatever aiokafka says of its own position, ours is that of the last record that was returned: after any error it is
put back there, because an error throws away what was taken out of other partitions.
"""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from aiokafka import AIOKafkaConsumer
from aiokafka import errors as kafka
from aiokafka.structs import TopicPartition as Place

from microflow.errors import TransportError
from microflow.ports import Record, TopicPartition
from microflow.transports.kafka import driver
from microflow.transports.kafka.consumers import stand_still

logger = logging.getLogger("microflow.transports.kafka")

FIRST_REST, LONGEST_REST = 1.0, 30.0
NOWHERE = Place("", -1)


class Reading:
    """The partitions of one assignment. None is read before it was sought, and nothing before `begin`."""

    def __init__(self, consumer: AIOKafkaConsumer, partitions: frozenset[TopicPartition]) -> None:
        self.partitions = partitions
        self.positions: dict[TopicPartition, int] = {}
        self._consumer = consumer
        self._begun = False
        self._sought: dict[TopicPartition, int] = {}
        self._paused: set[TopicPartition] = set()
        self._rests: dict[TopicPartition, tuple[float, float]] = {}
        self._active: tuple[Place, ...] = ()
        self._everything = False
        self._asking = 0
        self._asked_in_vain = 0.0
        stand_still(consumer, partitions)

    def begin(self) -> None:
        """Whoever has the partitions has been told, and knows where to read them."""
        self._begun = True
        self._choose()

    def end(self) -> None:
        """Read nothing more: the partitions are being taken away."""
        self._begun = False
        self._choose()

    def seek(self, partition: TopicPartition, offset: int) -> None:
        if partition not in self.partitions:
            raise TransportError(f"cannot seek in {partition.topic}[{partition.partition}]: it is not assigned")
        self.positions[partition] = self._sought[partition] = max(offset, 0)
        self._rests.pop(partition, None)
        self._put_back(partition)
        self._consumer.resume(Place(*partition))
        self._choose()

    def pause(self, partitions: Collection[TopicPartition]) -> None:
        """What aiokafka has fetched of them stays there, so that going on costs nothing."""
        self._paused.update(partition for partition in partitions if partition in self.partitions)
        self._choose()

    def resume(self, partitions: Collection[TopicPartition]) -> None:
        self._paused.difference_update(partitions)
        self._choose()

    @property
    def active(self) -> Mapping[TopicPartition, int]:
        """The partitions that are read now, with the offset that comes next."""
        return {TopicPartition(*place): self.positions[TopicPartition(*place)] for place in self._active}

    def has_read(self, partition: TopicPartition) -> bool:
        """Whether something has been read since the last seek."""
        return self._sought.get(partition) != self.positions.get(partition)

    def is_wanted(self, *, within: float) -> bool:
        """Whether somebody has asked for records lately and got none."""
        return self._asking > 0 or time.monotonic() - self._asked_in_vain < within

    def fetched_to(self, partitions: Iterable[TopicPartition]) -> dict[TopicPartition, int]:
        """Where aiokafka stands: beyond what it passed over, such as the ends of transactions."""
        return {each: driver.position(self._consumer, each) or self.positions[each] for each in partitions}

    # ── taking ────────────────────────────────────────────────────────────────────────────────────────────────────

    async def take(self, *, max_records: int, wait: float = 0) -> list[Record]:
        """What there is, at once if there is something. Raises what aiokafka raises; no record is lost by that."""
        self._end_rests()
        # Even when there is nothing to read: it is how the consumer hands over its errors.
        places = () if self._everything else self._active or (NOWHERE,)
        self._asking += 1
        try:
            batches = await self._consumer.getmany(*places, timeout_ms=int(wait * 1000), max_records=max_records)
        except Exception:
            self._put_all_back()
            raise
        finally:
            self._asking -= 1
        if not batches:
            self._asked_in_vain = time.monotonic()
        return self._records(batches)

    def give_back(self, records: Sequence[Record]) -> None:
        """Take these anew: nobody has got them."""
        for record in reversed(records):
            partition = record.source
            if partition in self.positions and self._sought.get(partition) != self.positions[partition]:
                self.positions[partition] = record.offset
                self._put_back(partition)

    async def take_one_by_one(self, *, max_records: int) -> tuple[list[Record], dict[TopicPartition, Exception]]:
        """As `take`, each partition for itself: those that can be read are, whatever is wrong with the others."""
        records: list[Record] = []
        failures: dict[TopicPartition, Exception] = {}
        for place in self._active:
            if len(records) >= max_records:
                break
            partition = TopicPartition(*place)
            try:
                batches = await self._consumer.getmany(place, timeout_ms=0, max_records=max_records - len(records))
            except (kafka.KafkaError, ValueError, TypeError, UnicodeDecodeError) as error:
                self._put_back(partition)
                failures[partition] = error
            else:
                records += self._records(batches)
        return records, failures

    def rest(self, partition: TopicPartition) -> None:
        """Leave a partition that cannot be read alone for a while, longer each time, so that it delays no other."""
        _, last = self._rests.get(partition, (0.0, FIRST_REST / 2))
        length = min(2 * last, LONGEST_REST)
        self._rests[partition] = (time.monotonic() + length, length)
        self._choose()

    @property
    def rest_ends_in(self) -> float:
        """In how many seconds a partition has rested enough."""
        return min((max(until - time.monotonic(), 0) for until, _ in self._rests.values() if until), default=math.inf)

    def _end_rests(self) -> None:
        now = time.monotonic()
        over = [partition for partition, (until, _) in self._rests.items() if until and until <= now]
        for partition in over:
            self._rests[partition] = (0.0, self._rests[partition][1])
        if over:
            self._choose()

    def _records(self, batches: Mapping[Any, Sequence[Any]]) -> list[Record]:
        records: list[Record] = []
        append = records.append
        last, instant = -1, None
        for (topic, partition), batch in batches.items():
            for each in batch:
                if (milliseconds := each.timestamp) != last:
                    last, instant = milliseconds, _instant(milliseconds)
                headers = each.headers
                for header in headers:
                    if header[1] is None:
                        headers = tuple((name, value or b"") for name, value in headers)
                        break
                append(Record(topic, partition, each.key, each.value, headers, instant, each.offset))
            place = TopicPartition(topic, partition)
            self.positions[place] = batch[-1].offset + 1
            if self._rests:
                self._rests.pop(place, None)
        return records

    def _choose(self) -> None:
        chosen = [
            partition
            for partition in self.positions
            if self._begun and partition not in self._paused and not self._rests.get(partition, (0.0, 0.0))[0]
        ]
        self._everything = len(chosen) == len(self.partitions)
        self._active = tuple(Place(*partition) for partition in chosen)

    def _put_all_back(self) -> None:
        for partition in self.positions:
            self._put_back(partition)

    def _put_back(self, partition: TopicPartition) -> None:
        # It may have been taken away this moment, and whoever has it is about to be told.
        with contextlib.suppress(kafka.IllegalStateError):
            self._consumer.seek(Place(*partition), self.positions[partition])


def _instant(milliseconds: int) -> datetime | None:
    """A record's time; producers write what they like there, so it may be none at all."""
    if milliseconds < 0:
        return None
    try:
        return datetime.fromtimestamp(milliseconds / 1000, tz=UTC)
    except (OverflowError, ValueError, OSError):
        return None


def named(partitions: Iterable[TopicPartition]) -> str:
    """Partitions as a person writes them."""
    return ", ".join(f"{topic}[{partition}]" for topic, partition in sorted(partitions))
