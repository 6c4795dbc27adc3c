"""Brokers die, hang and come back under load: nothing that was committed stays out of the log, nothing comes twice."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest
from aiokafka.admin import AIOKafkaAdminClient

from microflow.ports import TopicLayout
from microflow.transports.kafka import ClientSettings, KafkaTransport
from servers.kafka import Broker, Kafka
from servers.postgres import Postgres
from tests.asynchronous import asynchronous
from tests.crash.harness import Nursery
from tests.faults.chains import Stand, a_stand
from tests.faults.conftest import Recovery

pytestmark = [pytest.mark.local_servers("kafka", "postgres"), pytest.mark.timeout(600)]


def test_the_only_broker_is_killed_and_restarted(
    nursery: Nursery, tmp_path: Path, broker: Kafka, database: Postgres, recovery: Recovery
) -> None:
    with a_stand(nursery, tmp_path, broker, database) as stand:
        stand.start()
        with stand.under_load():
            broker.brokers[0].kill()
            broker.brokers[0].start()
            broker.wait_until_ready()
            recovery("the only broker restarted", stand.works())
        stand.judged(at_least=20)


def test_connections_to_the_broker_break_again_and_again(
    nursery: Nursery, tmp_path: Path, broker: Kafka, database: Postgres, recovery: Recovery
) -> None:
    proxy = broker.brokers[0].proxy
    assert proxy is not None
    with a_stand(nursery, tmp_path, broker, database) as stand:
        stand.start()
        with stand.under_load():
            for _ in range(5):
                proxy.break_connections()
                recovery("connections to the broker broken", stand.works())
        stand.judged(at_least=20)


@pytest.mark.torture
@pytest.mark.parametrize("rounds", [1, 6])
@pytest.mark.parametrize("end", ["killed", "stopped"])
def test_the_leader_of_a_partition_is_lost_in_a_cluster_of_three(
    nursery: Nursery, tmp_path: Path, cluster: Kafka, database: Postgres, recovery: Recovery, end: str, rounds: int
) -> None:
    with a_stand(nursery, tmp_path, cluster, database, replicas=3) as stand:
        stand.start()
        with stand.under_load():
            for turn in range(rounds):
                lost = leader_of(stand, cluster, partition=turn % 3)
                if end == "killed":
                    lost.kill()
                else:
                    lost.pause()
                recovery(f"leader {end}, one of three brokers", stand.works())
                if end == "killed":
                    lost.start()
                else:
                    lost.resume()
                cluster.wait_until_ready()
        stand.judged(at_least=20)


@pytest.mark.parametrize("seconds", [3, pytest.param(60, marks=pytest.mark.torture)])
def test_all_brokers_are_away_for_a_while(
    nursery: Nursery, tmp_path: Path, cluster: Kafka, database: Postgres, recovery: Recovery, seconds: int
) -> None:
    with a_stand(nursery, tmp_path, cluster, database, replicas=3) as stand:
        stand.start()
        with stand.under_load():
            for broker in cluster.brokers:
                broker.kill()
            time.sleep(seconds)
            for broker in cluster.brokers:
                broker.start()
            cluster.wait_until_ready()
            recovery(f"all brokers away for {seconds} s, after their return", stand.works())
        stand.judged(at_least=20)


@asynchronous
async def test_questions_are_answered_although_one_of_three_brokers_says_nothing(cluster: Kafka) -> None:
    """One that is frozen takes every third question. Members lost their sessions waiting for answers."""
    transport = await KafkaTransport.open(ClientSettings(servers=cluster.address()))
    try:
        await transport.administration.create({"asked": TopicLayout(partitions=1)})
        cluster.brokers[1].pause()
        try:
            answers = await asyncio.gather(*(transport.topics.describe(["asked"]) for _ in range(20)))
        finally:
            cluster.brokers[1].resume()
            await asyncio.to_thread(cluster.wait_until_ready)
        assert all("asked" in answer for answer in answers)
    finally:
        await transport.close()


def leader_of(stand: Stand, cluster: Kafka, *, partition: int) -> Broker:
    """The broker that leads this partition of the topic between the services."""

    async def ask() -> int:
        admin = AIOKafkaAdminClient(bootstrap_servers=cluster.address())
        await admin.start()
        try:
            [topic] = await admin.describe_topics([f"{stand.ground.prefix}orders"])
            return next(int(each["leader"]) for each in topic["partitions"] if each["partition"] == partition)
        finally:
            await admin.close()

    node = asyncio.run(ask())
    return next(broker for broker in cluster.brokers if broker.node == node)
