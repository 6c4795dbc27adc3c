"""How large a record may be: what the brokers say in general, and what a topic says for itself."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from aiokafka import errors as kafka
from aiokafka.protocol.admin import DescribeConfigsRequest

from microflow.errors import TransportError
from microflow.transports.kafka.client import Client, check

TOPIC, BROKER = 2, 4
DEFAULT_MESSAGE_BYTES = 1_048_588
"""Kafka's own limit, for those who may not ask."""
BATCH_OVERHEAD = 61
RECORD_OVERHEAD = 963
"""What a record takes beyond its key, value and headers: 21 bytes and up to 10 for each header, so room for 94. With
Kafka's own limit that leaves `microflow.records.MAX_RECORD_BYTES`."""


class TopicLimits:
    """The limits of a cluster's topics, as they were when they were asked for."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._general = DEFAULT_MESSAGE_BYTES
        self._topics: dict[str, int] = {}
        self.brokers_create_topics = False

    async def start(self, broker: int) -> None:
        """Ask a broker for what holds where a topic says nothing."""
        names = ["message.max.bytes", "auto.create.topics.enable"]
        values = (await self._ask([(BROKER, str(broker), names)], broker)).get(str(broker), {})
        self._general = int(values.get("message.max.bytes", DEFAULT_MESSAGE_BYTES))
        self.brokers_create_topics = values.get("auto.create.topics.enable") == "true"

    async def learn(self, topics: Collection[str]) -> None:
        """Ask for the limits of topics that exist."""
        if topics:
            answers = await self._ask([(TOPIC, topic, ["max.message.bytes"]) for topic in topics])
            self._topics |= {topic: int(values["max.message.bytes"]) for topic, values in answers.items() if values}

    def batch_bytes(self, topic: str) -> int:
        """The largest batch that a topic takes."""
        return self._topics.get(topic, self._general)

    def record_bytes(self, topic: str) -> int:
        """The size (key + value + headers) above which a record is not taken."""
        return self.batch_bytes(topic) - BATCH_OVERHEAD - RECORD_OVERHEAD

    async def _ask(
        self, resources: list[tuple[int, str, list[str]]], broker: int | None = None
    ) -> Mapping[str, Mapping[str, str]]:
        async def that_broker() -> int:
            assert broker is not None
            return broker

        try:
            return await self._client.ask(
                DescribeConfigsRequest(resources, False),
                configs,
                doing="to read settings",
                of=None if broker is None else that_broker,
            )
        except TransportError:
            return {}  # to ask for settings is a permission of its own, and what is too large is refused all the same


def configs(response: Any) -> dict[str, dict[str, str]]:
    """The settings of each resource of a response, by its name; those that may not be read are left out."""
    found = {}
    for code, _message, _type, name, entries in response.resources:
        if code == 0:
            found[name] = {entry[0]: entry[1] for entry in entries if entry[1] is not None}
        elif kafka.for_code(code).retriable:
            check(code)
    return found
