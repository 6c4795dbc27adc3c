"""What the order saga stands on in a fault test: topics on a Kafka, a database for each service on a PostgreSQL, the
card company's ledger; and the eyes and hands of the test there."""

from __future__ import annotations

import random
import subprocess
from collections.abc import Coroutine, Mapping, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any, TypeVar

import asyncpg
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition

from examples.order_saga import customers, inventory, orders, payments, shipping
from examples.order_saga.payments import CardCompany
from microflow import Event
from microflow.clocks import SystemClock
from microflow.envelopes import seal_root
from microflow.events import options_of
from microflow.partitioner import Partitioner
from microflow.ports import Record
from microflow.service import build
from servers.postgres import fresh_database
from tests.cli.projects import COMMAND, clean_environment
from tests.crash.background import Background
from tests.crash.log_follower import LogFollower
from tests.crash.readings import PARTITIONS, Logged
from tests.crash.real_ground import activity

MODULES = (orders, payments, inventory, shipping, customers)
DEFINITIONS = {definition.name: definition for definition in (build(module.service) for module in MODULES)}
SERVICES = tuple(DEFINITIONS)
TARGETS = {module.service.name: Path(module.__file__ or "") for module in MODULES}
TOPICS = sorted({topic for definition in DEFINITIONS.values() for topic in definition.topics})
T = TypeVar("T")
PATIENCE = 60.0
SESSION = 3.0
"""Seconds of silence after which Kafka takes a process for dead."""


class SagaGround:
    """`folder` holds what the processes write, `environment` is what they are told."""

    def __init__(self, folder: Path, kafka: str, postgres: str, *, lost_answers: float) -> None:
        self.folder = folder
        self._stack = ExitStack()
        ledger = folder / "card_company.db"
        self.company = self._stack.enter_context(closing(CardCompany(ledger)))
        self.databases = {service: self._stack.enter_context(fresh_database(postgres)) for service in SERVICES}
        self.environment = clean_environment(
            MICROFLOW_KAFKA=kafka,
            MICROFLOW_KAFKA_SESSION_TIMEOUT_MS=str(round(SESSION * 1000)),
            MICROFLOW_KAFKA_HEARTBEAT_INTERVAL_MS="300",
            MICROFLOW_LOG_LEVEL="info",
            ORDER_SAGA_LEDGER=str(ledger),
            ORDER_SAGA_LOST_ANSWERS=str(lost_answers),
            **{f"MICROFLOW_{service.upper()}_DATABASE": url for service, url in self.databases.items()},
        )
        self._make_topics()
        self._random = random.Random(0)
        self._partitioner = Partitioner()
        self._background = self._stack.enter_context(closing(Background()))
        self._follower = self._run(LogFollower.start(kafka, TOPICS, prefix=""))
        self._stack.callback(lambda: self._run(self._follower.stop()))
        self._kafka = kafka
        self._producer = self._run(_producer(kafka))
        self._stack.callback(lambda: self._run(self._producer.stop()))
        self._connections: dict[str, asyncpg.Connection[Any]] = {}
        self._stack.callback(lambda: self._run(self._hang_up()))

    # ── the log ───────────────────────────────────────────────────────────────────────────────────────────────────

    def publish(self, event: Event, *, flow: str, identifier: str | None = None) -> str:
        """Publish an event as the web shop would; return its id."""
        sealed = seal_root(
            event,
            service="web-shop",
            topic=options_of(type(event)).topic or options_of(type(event)).type,
            now=SystemClock().now(),
            random_bits=self._random.getrandbits,
            correlation_id=flow,
            identifier=identifier,
        )
        assert sealed.key is not None
        partition = self._partitioner.partition(sealed.key, partitions=PARTITIONS)
        self._run(self._send(Record(sealed.topic, partition, sealed.key, sealed.value, sealed.headers)))
        return sealed.id

    def repeat(self) -> None:
        """Publish every event of the services that is in the log now once more, as a relay that crashed would."""
        self._run(self._repeat())

    def log(self) -> Sequence[Logged]:
        """All records, in order of topics, partitions and offsets."""
        return self._run(self._follower.read())

    # ── the databases ─────────────────────────────────────────────────────────────────────────────────────────────

    def fetch(self, service: str, sql: str, *args: object) -> list[Mapping[str, Any]]:
        """The rows that a query in a service's database gives."""
        return self._run(self._fetch(service, sql, *args))

    def most_crashes(self, service: str) -> int:
        """With how many processes one event of this service, alone in hand, has ended so far."""
        [row] = self.fetch(service, "select coalesce(max(crashes), 0) as most from microflow.suspects")
        return int(row["most"])

    def work_left(self) -> Mapping[str, Any]:
        """What is still to be done, by service; nothing if all is at rest.

        Nothing is left if every service has committed all that the log held when this began, has nothing parked and
        nothing to publish, and the log has not grown meanwhile: what one of them had done, it would hold.
        """
        return self._run(self._work_left())

    def story(self) -> str:
        """What the sessions of the databases do, for whoever wonders why nothing goes on."""
        told = [f"── sessions of {service}\n{self._run(activity(url))}" for service, url in self.databases.items()]
        return "\n".join([f"left: {self.work_left()}", *told])

    def close(self) -> None:
        self._stack.close()

    def _make_topics(self) -> None:
        subprocess.run(
            [*COMMAND, "topics", "apply", *map(str, TARGETS.values()), "--partitions", str(PARTITIONS)],
            cwd=self.folder,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=PATIENCE,
            check=True,
        )

    async def _send(self, record: Record) -> None:
        await self._producer.send_and_wait(
            record.topic, record.value, key=record.key, partition=record.partition, headers=list(record.headers)
        )

    async def _repeat(self) -> None:
        ends = await self._follower.all_ends()
        consumer = AIOKafkaConsumer(
            bootstrap_servers=self._kafka, auto_offset_reset="earliest", enable_auto_commit=False
        )
        await consumer.start()
        try:
            places = {TopicPartition(*place): end for place, end in ends.items() if end}
            consumer.assign(list(places))
            while any([await consumer.position(place) < end for place, end in places.items()]):
                for place, records in (await consumer.getmany(timeout_ms=200)).items():
                    for each in (each for each in records if each.offset < places[place]):
                        headers = tuple(each.headers)
                        await self._send(Record(each.topic, each.partition, each.key, each.value, headers))
        finally:
            await consumer.stop()

    async def _work_left(self) -> Mapping[str, Any]:
        ends = await self._follower.all_ends()
        left: dict[str, Any] = {}
        for service in SERVICES:
            # In this order: what a service has emitted it wrote when it moved its watermark, or before.
            unread = await self._unread(service, ends)
            [counts] = await self._fetch(
                service,
                "select (select count(*) from microflow.parked) as parked, "
                "(select count(*) from microflow.outbox) as outbox",
            )
            counts = {name: count for name, count in counts.items() if count}
            if counts or unread:
                left[service] = {**counts, **unread}
        grown = {
            place: end - ends[place] for place, end in (await self._follower.all_ends()).items() if end > ends[place]
        }
        return left | ({"the log grows": grown} if grown else {})

    async def _unread(self, service: str, ends: Mapping[tuple[str, int], int]) -> Mapping[str, int]:
        rows = await self._fetch(
            service,
            "select p.topic, p.number, w.watermark from microflow.partitions p "
            "join microflow.watermarks w on w.partition = p.id",
        )
        watermarks = {(row["topic"], row["number"]): row["watermark"] for row in rows}
        consumed = DEFINITIONS[service].topics
        return {
            f"{topic}/{number}": end - watermarks.get((topic, number), 0)
            for (topic, number), end in ends.items()
            if topic in consumed and end > watermarks.get((topic, number), 0)
        }

    async def _fetch(self, service: str, sql: str, *args: object) -> list[Mapping[str, Any]]:
        if service not in self._connections:
            self._connections[service] = await asyncpg.connect(self.databases[service])
        return list(await self._connections[service].fetch(sql, *args))

    async def _hang_up(self) -> None:
        for connection in self._connections.values():
            await connection.close()

    def _run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return self._background.run(coroutine, seconds=PATIENCE)


async def _producer(kafka: str) -> AIOKafkaProducer:
    producer = AIOKafkaProducer(bootstrap_servers=kafka, acks="all", enable_idempotence=True)
    await producer.start()
    return producer
