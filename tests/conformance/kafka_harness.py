"""A harness for the Kafka transport: handles on a real cluster, topics and expulsions by Kafka's own administration."""

from __future__ import annotations

import itertools
import uuid
from datetime import timedelta

from aiokafka.admin import AIOKafkaAdminClient, NewTopic, RecordsToDelete
from aiokafka.protocol.group import LeaveGroupRequest
from aiokafka.structs import TopicPartition

from microflow.clocks import SystemClock
from microflow.conformance.transports import Abilities
from microflow.ports import Transport
from microflow.transports.kafka import ClientSettings, KafkaTransport

KAFKA = Abilities(
    session_expiry=True,
    retention=True,
    dense_offsets=True,
    topic_settings=True,
    moment=timedelta(milliseconds=400),
    time_limit=timedelta(seconds=60),
)
FETCH_WAIT_MS = 100
"""A fetch that is parked at the broker holds up what is sought meanwhile; a `moment` is longer."""


class KafkaHarness:
    """Handles on one cluster, each with a client id of its own. Names are unique, so the cluster may be shared."""

    abilities = KAFKA

    def __init__(self, servers: str) -> None:
        self.clock = SystemClock()
        self._servers = servers
        self._run = uuid.uuid4().hex[:12]
        self._numbers = itertools.count()
        self._client_ids: dict[Transport, str] = {}
        self._topics: list[str] = []

    def new_name(self) -> str:
        return f"conformance-{self._run}-{next(self._numbers)}"

    async def open(self) -> Transport:
        client_id = self.new_name()
        settings = ClientSettings(
            servers=self._servers, client_id=client_id, fetch_max_wait_ms=FETCH_WAIT_MS, metadata_max_age_ms=1000
        )
        transport = await KafkaTransport.open(settings)
        self._client_ids[transport] = client_id
        return transport

    async def create_topic(self, name: str) -> None:
        admin = await self._admin()
        try:
            response = await admin.create_topics([NewTopic(name, self.abilities.partitions, 1)])
            assert response.topic_errors[0][1] == 0, response
            while (await admin.describe_topics([name]))[0]["error_code"]:
                await self.clock.sleep(timedelta(milliseconds=20))  # the controller has it, and the broker not yet
        finally:
            await admin.close()
        self._topics.append(name)

    async def silence(self, transport: Transport) -> None:
        """What a broker does to a member whose session is over, it does to one that somebody says is leaving."""
        admin = await self._admin()
        try:
            for group, _ in await admin.list_consumer_groups():
                if not group.startswith(f"conformance-{self._run}"):
                    continue
                coordinator = await admin.find_coordinator(group)
                [described] = await admin.describe_consumer_groups([group], coordinator)
                for member in described.groups[0][5]:
                    if member[1] == self._client_ids[transport]:
                        await admin._send_request(LeaveGroupRequest(group, member[0]), coordinator)
        finally:
            await admin.close()

    async def expire(self, transport: Transport) -> None:
        places = [TopicPartition(topic, each) for topic in self._topics for each in range(self.abilities.partitions)]
        admin = await self._admin()
        try:
            await admin.delete_records({place: RecordsToDelete(-1) for place in places})
        finally:
            await admin.close()

    async def _admin(self) -> AIOKafkaAdminClient:
        admin = AIOKafkaAdminClient(bootstrap_servers=self._servers)
        await admin.start()
        return admin
