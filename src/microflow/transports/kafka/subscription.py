"""A subscription: records as the caller fetches them. What keeps them coming is in `following`."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection, Mapping, Sequence
from datetime import timedelta

from aiokafka import errors as kafka

from microflow.errors import TransportError
from microflow.ports import Committed, RebalanceListener, Record, TopicPartition
from microflow.transports.kafka.client import Client
from microflow.transports.kafka.errors import permission, transport_error
from microflow.transports.kafka.following import Following
from microflow.transports.kafka.groups import commit, committed
from microflow.transports.kafka.reading import Reading, named
from microflow.transports.kafka.topics import KafkaTopics


class KafkaSubscription:
    """`microflow.ports.Subscription` on a cluster."""

    def __init__(
        self,
        client: Client,
        topics: KafkaTopics,
        names: Collection[str],
        *,
        group: str | None,
        listener: RebalanceListener,
    ) -> None:
        self._client = client
        self._topics = topics
        self._names = ", ".join(sorted(names))
        self._group = group
        self._closed = False
        self._bell: asyncio.Future[None] | None = None
        self._missed: dict[TopicPartition, int] = {}
        self._following = Following(client, topics, names, group=group, listener=listener, ring=self._ring)

    async def fetch(self, *, max_records: int, wait: timedelta) -> Sequence[Record]:
        await asyncio.sleep(0)  # a caller with a long backlog must not keep everybody else from running
        if self._closed:
            raise TransportError("the subscription is closed")
        self._following.begin()
        end = time.monotonic() + wait.total_seconds()
        while not self._closed:
            if (failure := self._following.take_failure()) is not None:
                raise failure
            if records := await self._take(max_records):
                return records
            left = end - time.monotonic()
            if left <= 0:
                break
            if records := await self._wait(max_records, left):
                return records
        return []

    def seek(self, partition: TopicPartition, offset: int) -> None:
        if self._following.reading is None:
            raise TransportError(f"cannot seek in {named([partition])}: it is not assigned")
        self._following.reading.seek(partition, offset)
        self._ring()

    def pause(self, partitions: Collection[TopicPartition]) -> None:
        if self._following.reading is not None:
            self._following.reading.pause(partitions)
            self._ring()

    def resume(self, partitions: Collection[TopicPartition]) -> None:
        if self._following.reading is not None:
            self._following.reading.resume(partitions)
            self._ring()

    async def commit(self, offsets: Mapping[TopicPartition, int], *, metadata: str) -> None:
        if self._group is None:
            raise TransportError("a reader outside all groups has no offsets to commit")
        reading, generation = self._following.reading, self._following.generation
        if reading is None or generation is None or not reading.partitions.issuperset(offsets):
            raise TransportError("an offset comes too late: its partition is not assigned any more")
        await commit(self._client, self._group, generation, offsets, metadata=metadata)

    async def committed(self, partitions: Collection[TopicPartition]) -> Mapping[TopicPartition, Committed]:
        return {} if self._group is None else await committed(self._client, self._group, partitions)

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._ring()
        await self._following.close()

    # ── fetching ──────────────────────────────────────────────────────────────────────────────────────────────────

    async def _take(self, max_records: int) -> list[Record]:
        """What is there, without waiting."""
        reading = self._following.reading
        if reading is None:
            return []
        try:
            return await reading.take(max_records=max_records)
        except Exception as error:
            return await self._after_error(reading, error, max_records)

    async def _wait(self, max_records: int, seconds: float) -> list[Record]:
        """What comes within a time, or nothing as soon as something else has changed."""
        loop = asyncio.get_running_loop()
        bell = self._bell = loop.create_future()
        reading = self._following.reading
        if reading is None:
            await asyncio.wait([bell], timeout=seconds)
            return []
        seconds = min(seconds, reading.rest_ends_in)
        taking = loop.create_task(reading.take(max_records=max_records, wait=seconds))
        try:
            await asyncio.wait([taking, bell], timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            records = await _end(taking)
        except asyncio.CancelledError:
            taking.cancel()
            await asyncio.wait([taking])
            if not taking.cancelled() and taking.exception() is None:
                reading.give_back(taking.result())
            raise
        except Exception as error:
            return await self._after_error(reading, error, max_records)
        return records

    async def _after_error(self, reading: Reading, error: Exception, max_records: int) -> list[Record]:
        """Read on where it can be read; what cannot be read rests, and the caller is told why."""
        if reading is not self._following.reading or isinstance(error, kafka.ConsumerStoppedError):
            return []
        records, failures = await reading.take_one_by_one(max_records=max_records)
        if isinstance(error, kafka.OffsetOutOfRangeError):
            failures |= {TopicPartition(*place): error for place in error.args[0]}
        elif isinstance(error, kafka.TopicAuthorizationFailedError):
            failures |= {each: error for each in reading.active if each.topic in error.args}
        elif not failures:
            self._following.fail(transport_error(error, doing=f"to read {self._names}"))
        for partition, failure in failures.items():
            if isinstance(failure, kafka.OffsetOutOfRangeError) and await self._found_again(reading, partition):
                continue
            reading.rest(partition)
            doing = f"to read {named([partition])} at {reading.positions.get(partition)}"
            needs = permission("Read", [partition.topic])
            self._following.fail(transport_error(failure, doing=doing, needs=needs))
        return records

    async def _found_again(self, reading: Reading, partition: TopicPartition) -> bool:
        """Deal with an offset that the partition does not have: older records are gone, or the log is another one."""
        try:
            bounds = (await self._topics.bounds([partition])).get(partition)
        except TransportError:
            return False
        if bounds is None or reading is not self._following.reading:
            return False
        position = reading.positions[partition]
        is_there = bounds.beginning <= position <= bounds.end
        if not is_there and (reading.has_read(partition) or self._missed.get(partition) != position):
            # Who reads has to know that it is not there any more, and begins anew: if where it was, it has been told.
            self._missed[partition] = position
            self._following.doubt()
            reading.rest(partition)
            return True
        if position <= bounds.end:
            reading.seek(partition, max(position, bounds.beginning))
            return True
        return False

    def _ring(self) -> None:
        if self._bell is not None and not self._bell.done():
            self._bell.set_result(None)


async def _end(taking: asyncio.Task[list[Record]]) -> list[Record]:
    """What a task that takes records has got by now; without anything it is ended."""
    if not taking.done():
        taking.cancel()
        await asyncio.wait([taking])
    return [] if taking.cancelled() else taking.result()
