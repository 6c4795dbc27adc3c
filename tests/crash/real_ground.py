"""A chain on real servers: topics of its own on a Kafka, and a database for each service on a PostgreSQL."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any
from urllib.parse import urlsplit

import asyncpg
from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewPartitions, NewTopic, RecordsToDelete

from microflow.ports import Record
from servers.ports import LOOPBACK
from servers.postgres import fresh_database
from tests.crash.background import Background
from tests.crash.checker import SERVICES
from tests.crash.embedded_tables import headers_of
from tests.crash.log_follower import LogFollower
from tests.crash.readings import PARTITIONS, Effect, Snapshot, Tables

TOPICS = ("Placed", "orders", "ledger")
PATIENCE = 60.0
PATIENCE_TO_LOOK = 10.0


class RealGround:
    """`kafka` and `postgres` are addresses for the eyes and hands of the test; processes reach the log by
    `processes_kafka`, and the database by `postgres_port`, if these are named. Without `copies` there are no topics
    that dead letters are copied to: whatever a process publishes is in the log that a snapshot shows."""

    sees_deaths = False

    def __init__(
        self,
        kafka: str,
        postgres: str,
        *,
        replicas: int = 1,
        processes_kafka: str = "",
        postgres_port: int | None = None,
        copies: bool = True,
    ) -> None:
        self.prefix = f"chain-{uuid.uuid4().hex[:8]}-"
        self.kafka = kafka
        self._processes_kafka = processes_kafka or kafka
        self._postgres_port = postgres_port
        self._stack = ExitStack()
        self._background = Background()
        self._stack.callback(self._background.close)
        self.databases = {service: self._stack.enter_context(fresh_database(postgres)) for service in SERVICES}
        self._create_topics(replicas, copies=copies)
        follower = LogFollower.start(kafka, TOPICS, prefix=self.prefix)
        self._follower = self._background.run(follower, seconds=PATIENCE)
        self._stack.callback(lambda: self._background.run(self._follower.stop(), seconds=PATIENCE))

    def orders(self, service: str) -> Mapping[str, Any]:
        database = urlsplit(self.databases[service])
        if self._postgres_port is not None:
            database = database._replace(netloc=f"postgres@{LOOPBACK}:{self._postgres_port}")
        return {"prefix": self.prefix, "kafka": self._processes_kafka, "database": database.geturl()}

    def publish(self, records: Sequence[Record]) -> None:
        self._background.run(self._publish(records), seconds=PATIENCE)

    def snapshot(self) -> Snapshot:
        return self._background.run(self._snapshot(), seconds=PATIENCE_TO_LOOK)

    def hold_relay(self, service: str) -> None:
        # What nobody asks for may be taken over, but for the trigger. All in one transaction.
        self.execute(
            service,
            """
            lock table microflow.shards;
            update microflow.shards set owner = 'nobody';
            create function held() returns trigger language plpgsql as 'begin return null; end';
            create trigger held before update on microflow.shards for each row execute function held();
            """,
        )

    def let_relay_go(self, service: str) -> None:
        self.execute(
            service,
            "drop trigger held on microflow.shards; update microflow.shards set owner = null",
        )

    def execute(self, service: str, script: str) -> None:
        """Run statements in a service's database, as an operator would, in one transaction."""
        self._background.run(self._execute(service, script), seconds=PATIENCE_TO_LOOK)

    def ask(self, service: str, question: str) -> Any:
        """The first value of what a query in a service's database gives."""
        return self._background.run(self._ask(service, question), seconds=PATIENCE_TO_LOOK)

    # ── what an operator, or time, does to a topic ────────────────────────────────────────────────────────────────

    def grow(self, topic: str, partitions: int) -> None:
        """Add partitions to a topic, until it has so many."""

        async def grow(admin: AIOKafkaAdminClient) -> None:
            await admin.create_partitions({self.prefix + topic: NewPartitions(partitions)})

        self._administer(grow)
        self._background.run(self._follower.grown(topic, partitions), seconds=PATIENCE)

    def create_again(self, topic: str, *, unread: Mapping[int, int]) -> None:
        """Delete a topic, and with it what is `unread` from these offsets on, and create another one of its name."""
        name = self.prefix + topic

        async def create_again(admin: AIOKafkaAdminClient) -> None:
            await admin.delete_topics([name])
            async with asyncio.timeout(PATIENCE):
                # A name is free when the broker has noted that nobody has it any more.
                while (await admin.create_topics([NewTopic(name, PARTITIONS, 1)])).topic_errors[0][1] != 0:  # noqa: ASYNC110
                    await asyncio.sleep(0.05)

        self._administer(create_again)
        self._background.run(self._follower.forget(topic, unread=unread), seconds=PATIENCE)
        self._background.run(self._follower.created_again(topic), seconds=PATIENCE)

    def delete_records(self, topic: str, *, unread: Mapping[int, int]) -> Mapping[int, int]:
        """Delete all that is in a topic now, as its retention does. What is `unread` from these offsets on is gone for
        good. Returns where each partition begins from now on."""
        ends = self.ends(topic)

        async def delete(admin: AIOKafkaAdminClient) -> None:
            places = {TopicPartition(self.prefix + topic, number): end for number, end in ends.items()}
            await admin.delete_records({each: RecordsToDelete(end) for each, end in places.items()})

        self._administer(delete)
        self._background.run(self._follower.forget(topic, unread=unread), seconds=PATIENCE)
        return ends

    def ends(self, topic: str) -> Mapping[int, int]:
        """Where each partition of a topic ends now."""
        return self._background.run(self._follower.ends(topic), seconds=PATIENCE)

    def _administer(self, act: Callable[[AIOKafkaAdminClient], Awaitable[None]]) -> None:
        async def administer() -> None:
            admin = AIOKafkaAdminClient(bootstrap_servers=self.kafka)
            await admin.start()
            try:
                await act(admin)
            finally:
                await admin.close()

        self._background.run(administer(), seconds=PATIENCE)

    def story(self) -> str:
        return "\n".join(
            f"── sessions of {service}\n{self._background.run(activity(url), seconds=PATIENCE_TO_LOOK)}"
            for service, url in self.databases.items()
        )

    def close(self) -> None:
        self._stack.close()

    def _create_topics(self, replicas: int, *, copies: bool) -> None:
        names = dict.fromkeys((self.prefix + topic for topic in TOPICS), PARTITIONS)
        if copies:
            names.update({f"dlq-{self.prefix}{service}": 1 for service in SERVICES})

        async def create(admin: AIOKafkaAdminClient) -> None:
            await admin.create_topics([NewTopic(name, count, replicas) for name, count in names.items()])

        self._administer(create)

    async def _publish(self, records: Sequence[Record]) -> None:
        producer = AIOKafkaProducer(
            bootstrap_servers=self.kafka, acks="all", enable_idempotence=True, request_timeout_ms=5000
        )
        try:
            await producer.start()
            sent = [
                await producer.send(
                    record.topic,
                    record.value,
                    key=record.key,
                    partition=record.partition,
                    headers=list(record.headers),
                )
                for record in records
            ]
            for each in sent:
                await each
        finally:
            await producer.stop()

    async def _snapshot(self) -> Snapshot:
        # Upstream is read first: what it has done shows further down.
        first = await self._tables("first")
        log = await self._follower.read()
        return Snapshot(log, {"first": first, "second": await self._tables("second")})

    async def _tables(self, service: str) -> Tables:
        connection = await asyncpg.connect(self.databases[service])
        try:
            async with connection.transaction(isolation="repeatable_read", readonly=True):
                effects = await connection.fetch(
                    'select handler, event_id, topic, "key", process, owner from effects order by position'
                )
                dead = await connection.fetch(
                    "select h.name, d.headers, d.reason from microflow.dead_letters d "
                    "join microflow.handlers h on h.id = d.handler"
                )
                most_crashes = await connection.fetchval("select coalesce(max(crashes), 0) from microflow.suspects")
                parked = await connection.fetchval("select count(*) from microflow.parked")
                outbox = await connection.fetchval("select count(*) from microflow.outbox")
                partitions = await connection.fetch(
                    "select p.topic, p.number, w.watermark, p.owner from microflow.partitions p "
                    "join microflow.watermarks w on w.partition = p.id"
                )
        finally:
            await connection.close()
        return Tables(
            effects=[
                Effect(handler, event_id, self._plain(topic), key, process, owner)
                for handler, event_id, topic, key, process, owner in effects
            ],
            dead=[(handler, headers_of(blob)["ce_id"]) for handler, blob, _ in dead],
            parked=parked,
            outbox=outbox,
            watermarks={(self._plain(topic), number): watermark for topic, number, watermark, _ in partitions},
            owners={(self._plain(topic), number): owner for topic, number, _, owner in partitions},
            crashed=[(handler, headers_of(blob)["ce_id"]) for handler, blob, reason in dead if reason == "crashed"],
            most_crashes=most_crashes,
        )

    async def _execute(self, service: str, script: str) -> None:
        connection = await asyncpg.connect(self.databases[service])
        try:
            await connection.execute(script)
        finally:
            await connection.close()

    async def _ask(self, service: str, question: str) -> Any:
        connection = await asyncpg.connect(self.databases[service])
        try:
            return await connection.fetchval(question)
        finally:
            await connection.close()

    def _plain(self, name: str) -> str:
        return name.removeprefix(self.prefix)


async def activity(database: str) -> str:
    """What the sessions of a database do and wait for, a line for each."""
    connection = await asyncpg.connect(database)
    try:
        rows = await connection.fetch(
            "select pid, state, wait_event_type, wait_event, now() - xact_start as open, "
            "pg_blocking_pids(pid) as behind, left(query, 300) as query, "
            "(select string_agg(mode || classid || '/' || objid || granted, ' ') from pg_locks l "
            "where l.pid = a.pid and locktype = 'advisory') as locks from pg_stat_activity a "
            "where datname = current_database() and pid <> pg_backend_pid() order by xact_start"
        )
        return "\n".join(str(dict(row)) for row in rows)
    finally:
        await connection.close()
