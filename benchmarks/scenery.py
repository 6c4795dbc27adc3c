"""Real servers to measure on: topics with events in them, a fresh database for each who is measured."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import random
import secrets
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import asyncpg
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from chain.first import Begun

from microflow.clocks import SystemClock
from microflow.envelopes import Sealed, seal_root
from microflow.partitioner import Partitioner

PARTITIONS = 6
ACCOUNTS = 1000


@dataclass
class Scenery:
    kafka: str
    database: str
    admin: AIOKafkaAdminClient
    reader: AIOKafkaConsumer
    source: str
    preloaded: int = 0
    randomness: random.Random = field(default_factory=lambda: random.Random(1))
    numbers: itertools.count[int] = field(default_factory=itertools.count)
    run: str = field(default_factory=lambda: secrets.token_hex(3))

    def new_name(self, what: str) -> str:
        return f"{what}-{self.run}-{next(self.numbers)}"

    async def new_topic(self, what: str) -> str:
        name = self.new_name(what)
        await self.admin.create_topics([NewTopic(name, PARTITIONS, 1)])
        return name

    @property
    def database_server(self) -> str:
        """PostgreSQL's host:port."""
        return urlsplit(self.database).netloc.rpartition("@")[2]

    async def new_database(self) -> str:
        """The URL of an empty database."""
        name = self.new_name("bench").replace("-", "_")
        connection = await asyncpg.connect(self.database)
        try:
            await connection.execute(f"create database {name}")
        finally:
            await connection.close()
        return urlsplit(self.database)._replace(path=f"/{name}").geturl()

    async def preload(self, events: int) -> None:
        """Fill the source topic with events of a thousand accounts, each the beginning of a flow."""
        self.source = await self.new_topic("Begun")
        partitioner = Partitioner()
        async with AIOKafkaProducer(bootstrap_servers=self.kafka, acks="all", linger_ms=5) as producer:
            sent = []
            for sealed in self.events(events, self.source):
                partition = partitioner.partition(sealed.key or b"", partitions=PARTITIONS)
                headers = list(sealed.headers)
                sent.append(await producer.send(self.source, sealed.value, sealed.key, partition, headers=headers))
                if len(sent) == 5_000:
                    await asyncio.gather(*sent)
                    sent.clear()
            await asyncio.gather(*sent)
        self.preloaded = events

    def events(self, count: int, topic: str) -> Iterator[Sealed]:
        """Events of a thousand accounts, each the beginning of a flow of its own."""
        clock, bits = SystemClock(), self.randomness.getrandbits
        for number in range(count):
            event = Begun(account=f"account-{number % ACCOUNTS}", number=number)
            yield seal_root(event, service="web", topic=topic, now=clock.now(), random_bits=bits)

    async def published(self, topic: str) -> int:
        """How many records a topic has."""
        ends = await self.reader.end_offsets([TopicPartition(topic, number) for number in range(PARTITIONS)])
        return sum(ends.values())


@contextlib.asynccontextmanager
async def open_scenery() -> AsyncIterator[Scenery]:
    kafka, database = os.environ["MICROFLOW_KAFKA"], os.environ["MICROFLOW_DATABASE"]
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka)
    reader = AIOKafkaConsumer(bootstrap_servers=kafka)
    await admin.start()
    await reader.start()
    try:
        yield Scenery(kafka, database, admin, reader, source="")
    finally:
        await reader.stop()
        await admin.close()
