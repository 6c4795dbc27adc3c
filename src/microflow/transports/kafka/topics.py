"""What a cluster knows about its topics, and where their partitions begin and end."""

from __future__ import annotations

import asyncio
import math
import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from aiokafka import errors as kafka
from aiokafka.protocol.offset import OffsetRequest

from microflow.ports import Bounds, Topic, TopicPartition
from microflow.transports.kafka.client import Client, check
from microflow.transports.kafka.errors import permission, transport_error
from microflow.transports.kafka.limits import TopicLimits
from microflow.transports.kafka.protocol import NO_ID, id_in_text

EARLIEST, END = -2, -1
READ_UNCOMMITTED, READ_COMMITTED = 0, 1
MISSING = frozenset({kafka.UnknownTopicOrPartitionError.errno, kafka.InvalidTopicError.errno})
LEGAL = re.compile(r"(?!\.{1,2}$)[A-Za-z0-9._-]{1,249}")
UNIX_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
UNTIL_CREATED = (0.05, 0.2, 0.5, 1.0)
"""A broker that creates a topic by itself says so a little before it is there."""


class KafkaTopics:
    """`microflow.ports.Topics` of a cluster."""

    def __init__(self, client: Client, limits: TopicLimits, *, cluster_id: str) -> None:
        self._client = client
        self._limits = limits
        self._cluster_id = cluster_id

    async def cluster_id(self) -> str:
        return self._cluster_id

    async def describe(self, names: Collection[str] | None = None) -> Mapping[str, Topic]:
        return await self._metadata(names)

    async def ensure(self, names: Collection[str]) -> frozenset[str]:
        missing = frozenset(names)
        pauses = UNTIL_CREATED if self._limits.brokers_create_topics else ()
        for pause in (*pauses, 0.0):
            found = await self._metadata(missing, create=True)
            missing -= found.keys()
            if not missing:
                break
            await asyncio.sleep(pause)
        await self._limits.learn(frozenset(names) - missing)
        return missing

    async def bounds(self, partitions: Collection[TopicPartition]) -> Mapping[TopicPartition, Bounds]:
        beginnings, ends = await asyncio.gather(
            self.offsets(dict.fromkeys(partitions, EARLIEST)), self.offsets(dict.fromkeys(partitions, END))
        )
        return {each: Bounds(beginnings[each], ends[each]) for each in beginnings.keys() & ends.keys()}

    async def offsets_at(
        self, partitions: Collection[TopicPartition], instant: datetime
    ) -> Mapping[TopicPartition, int]:
        # A record's timestamp is in milliseconds: the first one that is not older than a fraction of one is the next.
        milliseconds = max(math.ceil((instant - UNIX_EPOCH) / timedelta(milliseconds=1)), 0)
        found, ends = await asyncio.gather(
            self.offsets(dict.fromkeys(partitions, milliseconds)), self.offsets(dict.fromkeys(partitions, END))
        )
        return {each: offset if (offset := found[each]) >= 0 else ends[each] for each in found.keys() & ends.keys()}

    async def offsets(
        self, wanted: Mapping[TopicPartition, int], *, isolation: int = READ_UNCOMMITTED
    ) -> dict[TopicPartition, int]:
        """For each partition that exists the offset that a timestamp, `EARLIEST` or `END` stands for; -1 for none."""
        leaders = await self._client.leaders([each for each in wanted if LEGAL.fullmatch(each.topic)])
        by_leader: dict[int, list[TopicPartition]] = defaultdict(list)
        for partition, leader in leaders.items():
            by_leader[leader].append(partition)
        answers = await asyncio.gather(
            *(
                self._offsets_of(leader, {each: wanted[each] for each in led}, isolation)
                for leader, led in by_leader.items()
            )
        )
        return {partition: offset for answer in answers for partition, offset in answer.items()}

    async def _offsets_of(
        self, leader: int, wanted: Mapping[TopicPartition, int], isolation: int
    ) -> dict[TopicPartition, int]:
        nodes = iter([leader])

        async def led_by() -> int:
            # It may have been asked in vain because the partition has moved: then whoever leads it now is asked.
            for node in nodes:
                return node
            return next(iter((await self._client.leaders(wanted.keys())).values()), -1)

        by_topic: dict[str, list[tuple[int, int]]] = defaultdict(list)
        for (topic, partition), timestamp in wanted.items():
            by_topic[topic].append((partition, timestamp))
        request = OffsetRequest(-1, isolation, list(by_topic.items()))
        return await self._client.ask(request, _offsets, doing="to look up offsets", of=led_by)

    async def _metadata(self, names: Collection[str] | None, *, create: bool = False) -> dict[str, Topic]:
        if names is not None:
            names = [name for name in names if LEGAL.fullmatch(name)]
        return await self._client.topics(names, _topics, create=create)


def _topics(metadata: Any) -> dict[str, Topic]:
    found, denied = {}, []
    for code, name, topic_id, internal, partitions, *_ in metadata.topics:
        if internal or code in MISSING:
            continue
        if code == kafka.TopicAuthorizationFailedError.errno:
            denied.append(name)
            continue
        check(code, name)
        found[name] = Topic(name, len(partitions), "" if topic_id == NO_ID else id_in_text(topic_id))
    if denied:
        doing, needs = f"to look at {', '.join(denied)}", permission("Describe", denied)
        raise transport_error(kafka.TopicAuthorizationFailedError(), doing=doing, needs=needs)
    return found


def _offsets(response: Any) -> dict[TopicPartition, int]:
    return dict(_each_offset(response))


def _each_offset(response: Any) -> Iterable[tuple[TopicPartition, int]]:
    for topic, partitions in response.topics:
        for partition, code, _timestamp, offset in partitions:
            check(code, topic)
            yield TopicPartition(topic, partition), offset
