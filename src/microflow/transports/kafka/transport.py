"""The Kafka transport: publishing, reading and topics of one cluster, by aiokafka."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Collection, Sequence

from microflow.errors import TransportError
from microflow.ports import RebalanceListener, Record, Subscription
from microflow.transports.kafka.administration import KafkaAdministration
from microflow.transports.kafka.client import Client, as_it_is
from microflow.transports.kafka.client_settings import ClientSettings
from microflow.transports.kafka.inspection import KafkaInspection
from microflow.transports.kafka.limits import TopicLimits
from microflow.transports.kafka.logins import keep_logins_secret
from microflow.transports.kafka.publishing import Publisher
from microflow.transports.kafka.subscription import KafkaSubscription
from microflow.transports.kafka.topics import KafkaTopics

AT_ONCE = 4
"""aiokafka has one request on its way to each broker; meanwhile the next batches can be made."""


class KafkaTransport:
    """`microflow.ports.Transport` on a cluster."""

    def __init__(self, client: Client, limits: TopicLimits, *, cluster_id: str) -> None:
        self._client = client
        self._limits = limits
        self._topics = KafkaTopics(client, limits, cluster_id=cluster_id)
        self._administration = KafkaAdministration(client, self._topics, limits)
        self._inspection = KafkaInspection(client)
        self._publisher = Publisher(client.settings, self._topics, limits)
        self._subscriptions: set[KafkaSubscription] = set()
        self._closed = False

    @classmethod
    async def open(cls, settings: ClientSettings) -> KafkaTransport:
        """Reach a cluster. Raises TransportError, with what to do about it."""
        keep_logins_secret()
        client = Client(settings)
        await client.start()
        try:
            metadata = await client.topics([], as_it_is)
            limits = TopicLimits(client)
            await limits.start(metadata.brokers[0][0])
        except BaseException:
            await client.close()
            raise
        return cls(client, limits, cluster_id=metadata.cluster_id)

    @property
    def topics(self) -> KafkaTopics:
        return self._topics

    @property
    def administration(self) -> KafkaAdministration:
        return self._administration

    @property
    def inspection(self) -> KafkaInspection:
        return self._inspection

    def max_record_bytes(self, topic: str) -> int:
        return self._limits.record_bytes(topic)

    @property
    def publishing_at_once(self) -> int:
        return AT_ONCE

    async def publish(self, records: Sequence[Record]) -> Sequence[TransportError | None]:
        self._check_open()
        return await self._publisher.publish(records) if records else []

    @contextlib.asynccontextmanager
    async def subscribe(
        self, topics: Collection[str], *, group: str | None, listener: RebalanceListener
    ) -> AsyncIterator[Subscription]:
        self._check_open()
        subscription = KafkaSubscription(self._client, self._topics, topics, group=group, listener=listener)
        self._subscriptions.add(subscription)
        try:
            yield subscription
        finally:
            self._subscriptions.discard(subscription)
            await subscription.close()

    async def close(self) -> None:
        """Leave all groups and hang up. Closing twice is harmless."""
        if self._closed:
            return
        self._closed = True
        for subscription in tuple(self._subscriptions):
            await subscription.close()
        await self._publisher.close()
        await self._client.close()

    def _check_open(self) -> None:
        if self._closed:
            raise TransportError("the log is closed")
