"""Brokers that can be killed, paused and restarted, on the ports and data that they had."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import KafkaError

from servers.finding import Found
from servers.folders import is_alive
from servers.kafka import Broker, Kafka
from servers.ports import answers

pytestmark = pytest.mark.local_servers("kafka")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Kafka]:
    with Kafka(brokers=3, properties={"message.max.bytes": "5000"}) as cluster:
        yield cluster


async def create(address: str, topic: str, *, replicas: int = 1) -> None:
    async with an_admin(address) as admin:
        await admin.create_topics([NewTopic(topic, num_partitions=1, replication_factor=replicas)])


async def leader(address: str, topic: str) -> int:
    async with an_admin(address) as admin:
        [described] = await admin.describe_topics([topic])
        return int(described["partitions"][0]["leader"])


async def send(address: str, topic: str, value: bytes) -> None:
    async with AIOKafkaProducer(bootstrap_servers=address, acks="all", enable_idempotence=True) as producer:
        await producer.send_and_wait(topic, value)


async def read(address: str, topic: str, count: int) -> list[bytes]:
    consumer = AIOKafkaConsumer(topic, bootstrap_servers=address, auto_offset_reset="earliest")
    async with consumer, asyncio.timeout(30):
        return [(await consumer.getone()).value for _ in range(count)]


@asynccontextmanager
async def an_admin(address: str) -> AsyncIterator[AIOKafkaAdminClient]:
    admin = AIOKafkaAdminClient(bootstrap_servers=address)
    await admin.start()
    try:
        yield admin
    finally:
        await admin.close()


def test_a_killed_leader_is_replaced_and_comes_back_with_its_port_and_data(cluster: Kafka) -> None:
    asyncio.run(create(cluster.address(), "orders", replicas=3))
    asyncio.run(send(cluster.address(), "orders", b"before"))
    killed = broker(cluster, asyncio.run(leader(cluster.address(), "orders")))
    pid, port = killed.pid, killed.port

    killed.kill()
    asyncio.run(send(others(cluster, killed), "orders", b"meanwhile"))

    assert not is_alive(pid)
    assert not answers(port)
    killed.start()
    cluster.wait_until_ready()
    assert killed.port == port
    assert asyncio.run(read(killed.address(), "orders", 2)) == [b"before", b"meanwhile"]


def test_a_paused_broker_keeps_its_port_and_says_nothing_until_it_goes_on(cluster: Kafka) -> None:
    paused = cluster.brokers[0]

    paused.pause()

    try:
        with pytest.raises((KafkaError, TimeoutError)):
            asyncio.run(ask(paused, seconds=1))
        assert answers(paused.port)
    finally:
        paused.resume()
    cluster.wait_until_ready()
    asyncio.run(ask(paused, seconds=60))


def test_a_property_reaches_every_broker(cluster: Kafka) -> None:
    asyncio.run(create(cluster.address(), "small"))

    with pytest.raises(KafkaError, match="MessageSizeTooLarge"):
        asyncio.run(send(cluster.address(), "small", b"x" * 6000))


def test_nothing_of_a_cluster_is_left_when_its_block_ends() -> None:
    with Kafka(listeners={"OTHER": "PLAINTEXT"}) as kafka:
        [only] = kafka.brokers
        asyncio.run(create(only.address("OTHER"), "by-another-door"))
        pid, folder = only.pid, kafka.folder
        assert only.address("OTHER") != only.address()

    assert not is_alive(pid)
    assert not folder.exists()


def test_the_session_has_a_broker_whose_groups_have_a_coordinator(kafka: Found) -> None:
    async def join() -> None:
        await create(kafka.address, "joined")
        consumer = AIOKafkaConsumer("joined", bootstrap_servers=kafka.address, group_id="joiner")
        async with asyncio.timeout(10), consumer:
            assert len(consumer.assignment()) == 1

    asyncio.run(join())


def broker(cluster: Kafka, node: int) -> Broker:
    return next(broker for broker in cluster.brokers if broker.node == node)


def others(cluster: Kafka, without: Broker) -> str:
    return ",".join(broker.address() for broker in cluster.brokers if broker is not without)


async def ask(one: Broker, *, seconds: int) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=one.address(), request_timeout_ms=seconds * 1000)
    async with asyncio.timeout(3 * seconds):
        try:
            await admin.start()
            await admin.list_topics()
        finally:
            await admin.close()
