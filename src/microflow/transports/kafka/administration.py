"""Laying out the topics of a cluster: partitions, copies, retention. Nothing here deletes or shrinks."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping
from datetime import timedelta
from typing import Any

from aiokafka import errors as kafka
from aiokafka.protocol.admin import CreatePartitionsRequest, CreateTopicsRequest, DescribeConfigsRequest

from microflow.errors import TransportError
from microflow.ports import FOREVER, TopicLayout, TopicPartition
from microflow.transports.kafka.client import Client, check
from microflow.transports.kafka.groups import committed, groups
from microflow.transports.kafka.limits import TOPIC, TopicLimits, configs
from microflow.transports.kafka.protocol import AlterSettings
from microflow.transports.kafka.topics import LEGAL, KafkaTopics

WHAT_THE_BROKER_DECIDES = -1
RETENTION, MIN_IN_SYNC = "retention.ms", "min.insync.replicas"
TIMEOUT_MS = 15_000
PATIENCE = timedelta(seconds=20)
UNTIL_LED = 10.0


class KafkaAdministration:
    """`microflow.ports.Administration` of a cluster."""

    def __init__(self, client: Client, topics: KafkaTopics, limits: TopicLimits) -> None:
        self._client = client
        self._topics = topics
        self._limits = limits

    async def layouts(self, names: Collection[str]) -> Mapping[str, TopicLayout]:
        found = await self._topics.describe(names)
        if not found:
            return {}
        copies = await self._client.topics(found.keys(), _copies)
        settings = await self._client.ask(
            DescribeConfigsRequest([(TOPIC, name, [RETENTION, MIN_IN_SYNC]) for name in found], False),
            configs,
            doing="to read the settings of topics",
        )
        return {
            name: layout_of(topic.partitions, copies.get(name), settings.get(name, {})) for name, topic in found.items()
        }

    async def create(self, layouts: Mapping[str, TopicLayout]) -> None:
        wanted: list[tuple[Any, ...]] = [
            (name, layout.partitions, layout.replication or WHAT_THE_BROKER_DECIDES, [], _settings(layout))
            for name, layout in layouts.items()
        ]
        if not wanted:
            return
        request = CreateTopicsRequest(create_topic_requests=wanted, timeout=TIMEOUT_MS, validate_only=False)
        read = _refusals("create", passed_over=kafka.TopicAlreadyExistsError)
        await self._client.ask(request, read, doing="to create topics", within=PATIENCE)
        await self._until_led(layouts.keys())
        await self._limits.learn(layouts.keys())

    async def grow(self, partitions: Mapping[str, int]) -> None:
        found = await self._topics.describe(partitions.keys())
        growing = {
            name: count for name, count in partitions.items() if name in found and count > found[name].partitions
        }
        if not growing:
            return
        wanted = [(name, (count, None)) for name, count in growing.items()]
        request = CreatePartitionsRequest(topic_partitions=wanted, timeout=TIMEOUT_MS, validate_only=False)
        await self._client.ask(request, _refusals("grow"), doing="to add partitions", within=PATIENCE, once=True)
        await self._until_led(growing.keys(), partitions=growing)

    async def lags(self, topic: str) -> Mapping[str, int]:
        found = await self._topics.describe([topic])
        partitions = [TopicPartition(topic, each) for name in found for each in range(found[name].partitions)]
        bounds = await self._topics.bounds(partitions)
        lags = {}
        for group in await groups(self._client):
            if offsets := await committed(self._client, group, partitions):
                reached = {each: offsets[each].offset if each in offsets else bounds[each].beginning for each in bounds}
                lags[group] = sum(max(bounds[each].end - offset, 0) for each, offset in reached.items())
        return lags

    async def alter(self, layouts: Mapping[str, TopicLayout]) -> None:
        changes = {name: settings for name, layout in layouts.items() if (settings := _settings(layout))}
        if not changes:
            return

        def read(response: Any) -> None:
            for code, message, _type, name in response.responses:
                _refuse("alter", name, code, message)

        await self._client.ask(AlterSettings(TOPIC, changes), read, doing="to change the settings of topics")
        await self._until_altered({name: dict(settings) for name, settings in changes.items()})

    async def _until_altered(self, changes: Mapping[str, Mapping[str, str]]) -> None:
        """Return when a broker knows the new settings; those that may not be read are taken for changed."""
        request = DescribeConfigsRequest([(TOPIC, name, list(settings)) for name, settings in changes.items()], False)
        async with asyncio.timeout(UNTIL_LED):
            while True:
                found = await self._client.ask(request, configs, doing="to read the settings of topics")
                if all(settings.items() <= found.get(name, settings).items() for name, settings in changes.items()):
                    return
                await asyncio.sleep(0.05)

    async def _until_led(self, names: Collection[str], *, partitions: Mapping[str, int] | None = None) -> None:
        """Return when a broker knows the topics and who leads each of their partitions."""
        async with asyncio.timeout(UNTIL_LED):
            while True:
                led = await self._client.topics([name for name in names if LEGAL.fullmatch(name)], _led)
                if all(led.get(name, 0) >= (partitions or {}).get(name, 1) for name in names):
                    return
                await asyncio.sleep(0.05)


def _copies(metadata: Any) -> dict[str, int]:
    return {topic[1]: len(topic[4][0][4]) for topic in metadata.topics if topic[4]}


def _led(metadata: Any) -> dict[str, int]:
    """How many partitions each topic has, of those topics that are led everywhere."""
    return {topic[1]: len(topic[4]) for topic in metadata.topics if all(each[2] >= 0 for each in topic[4])}


def layout_of(partitions: int, copies: int | None, settings: Mapping[str, str]) -> TopicLayout:
    """A topic's layout, by what its metadata and its settings say."""
    retention = None
    if RETENTION in settings:
        milliseconds = int(settings[RETENTION])
        retention = FOREVER if milliseconds < 0 else timedelta(milliseconds=milliseconds)
    min_in_sync = int(settings[MIN_IN_SYNC]) if MIN_IN_SYNC in settings else None
    return TopicLayout(partitions=partitions, replication=copies, min_in_sync=min_in_sync, retention=retention)


def _settings(layout: TopicLayout) -> list[tuple[str, str]]:
    settings = []
    if layout.retention is not None:
        milliseconds = -1 if layout.retention == FOREVER else layout.retention // timedelta(milliseconds=1)
        settings.append((RETENTION, str(milliseconds)))
    if layout.min_in_sync is not None:
        settings.append((MIN_IN_SYNC, str(layout.min_in_sync)))
    return settings


def _refusals(verb: str, *, passed_over: type[Exception] | None = None) -> Callable[[Any], None]:
    def read(response: Any) -> None:
        for name, code, *message in response.topic_errors:
            if kafka.for_code(code) is not passed_over:
                _refuse(verb, name, code, message[0] if message else None)

    return read


def _refuse(verb: str, name: str, code: int, message: str | None) -> None:
    if not code:
        return
    if kafka.for_code(code).retriable or not message:
        check(code, name)
    raise TransportError(f"Kafka refuses to {verb} the topic {name}.", why=message)
