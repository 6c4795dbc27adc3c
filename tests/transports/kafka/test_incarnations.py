"""A service on a Kafka whose topics are not what they were: told, never silent, and it goes on (semantics 9, 13)."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import sqlite3
import uuid
from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from pathlib import Path

import pytest
from aiokafka.admin import AIOKafkaAdminClient, RecordsToDelete
from aiokafka.protocol.admin import DeleteGroupsRequest
from aiokafka.structs import TopicPartition as Place

from microflow.clocks import SystemClock
from microflow.hosting import running
from microflow.ports import Record, TopicLayout, TopicPartition
from microflow.reports import Report
from microflow.service import Service
from microflow.settings import Settings
from microflow.transports.kafka import ClientSettings, KafkaTransport
from servers.finding import Found
from tests.asynchronous import asynchronous
from tests.user_code import user_module

AT_MOST = 30.0
SOURCE = """
class Placed(Event):
    number: int

@on("Placed", topic="{topic}")
async def note(placed: Placed) -> None:
    pass

service = Service("{name}")
"""


class Stage:
    """A topic of one partition, a service that reads it, and what was handled and told."""

    def __init__(self, servers: str, folder: Path, log: pytest.LogCaptureFixture) -> None:
        self.topic = f"orders-{uuid.uuid4().hex[:12]}"
        self.name = f"payments-{uuid.uuid4().hex[:12]}"
        self.handled: list[int] = []
        self._servers = servers
        self._folder = folder
        self._log = log
        self._changed = asyncio.Event()

    @contextlib.asynccontextmanager
    async def admin(self) -> AsyncIterator[AIOKafkaAdminClient]:
        admin = AIOKafkaAdminClient(bootstrap_servers=self._servers)
        await admin.start()
        try:
            yield admin
        finally:
            await admin.close()

    @contextlib.asynccontextmanager
    async def transport(self) -> AsyncIterator[KafkaTransport]:
        transport = await KafkaTransport.open(ClientSettings(servers=self._servers))
        try:
            yield transport
        finally:
            await transport.close()

    @contextlib.asynccontextmanager
    async def service(self) -> AsyncIterator[None]:
        """The service at work."""
        settings = Settings(home=self._folder, kafka=self._servers)
        module = user_module(self._folder, SOURCE.format(topic=self.topic, name=self.name), name=self.topic)
        service = module.service
        assert isinstance(service, Service)
        async with asyncio.timeout(AT_MOST), running(service, settings=settings, observe=self._note):
            yield

    async def create(self) -> None:
        async with self.transport() as transport:
            await transport.administration.create({self.topic: TopicLayout(partitions=1)})

    async def create_anew(self) -> None:
        async with self.admin() as admin:
            await admin.delete_topics([self.topic])
        async with self.transport() as transport:
            clock = SystemClock()
            while await transport.topics.describe([self.topic]):
                await clock.sleep(timedelta(milliseconds=50))
        await self.create()

    async def place(self, *numbers: int) -> None:
        async with self.transport() as transport:
            value = [json.dumps({"number": number}).encode() for number in numbers]
            errors = await transport.publish([Record(self.topic, 0, b"key", each) for each in value])
            assert not any(errors), errors

    async def until_handled(self, *numbers: int) -> None:
        await self.until(lambda: self.handled[-len(numbers) :] == list(numbers))

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(AT_MOST):
            while not condition():
                self._changed.clear()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._changed.wait(), 0.1)

    def told(self, text: str) -> bool:
        return any(text in record.getMessage() for record in self._log.records)

    def set_watermark(self, offset: int) -> None:
        """What the database would have, had the log been longer once."""
        with contextlib.closing(sqlite3.connect(self._folder / ".microflow" / f"{self.name}.db")) as database:
            database.execute("update microflow_partitions set watermark = ?", (offset,))
            database.commit()

    def _note(self, report: Report) -> None:
        assert report.outcome == "done", report
        self.handled.append(json.loads(report.record.value or b"")["number"])
        self._changed.set()


@pytest.fixture
def stage(kafka: Found, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> Stage:
    (tmp_path / ".microflow").mkdir()
    caplog.set_level(logging.CRITICAL, logger="aiokafka")
    caplog.set_level(logging.WARNING, logger="microflow")  # the last one is the level of what is caught, too
    return Stage(kafka.address, tmp_path, caplog)


@asynchronous
async def test_a_topic_created_anew_while_the_service_was_away_is_read_from_its_earliest_record(stage: Stage) -> None:
    await stage.create()
    await stage.place(0, 1, 2)
    async with stage.service():
        await stage.until_handled(0, 1, 2)

    await stage.create_anew()
    await stage.place(10, 11, 12, 13)  # more than before: the old offset is one of the new topic, too
    async with stage.service():
        await stage.until_handled(10, 11, 12, 13)

    assert stage.handled == [0, 1, 2, 10, 11, 12, 13]
    assert stage.told(f"{stage.topic}[0] is not the one it was: the topic was deleted and created again")
    assert stage.told("read up to 3")


@asynchronous
async def test_a_topic_created_anew_while_the_service_runs_is_noticed_and_read(stage: Stage) -> None:
    await stage.create()
    await stage.place(0, 1, 2)
    async with stage.service():
        await stage.until_handled(0, 1, 2)

        await stage.create_anew()
        await stage.place(10, 11, 12, 13)

        await stage.until_handled(10, 11, 12, 13)

    assert stage.handled == [0, 1, 2, 10, 11, 12, 13]
    assert stage.told(f"{stage.topic}[0] is not the one it was")


@asynchronous
async def test_records_deleted_before_they_were_read_are_told_with_their_number(stage: Stage) -> None:
    await stage.create()
    await stage.place(0, 1, 2)
    async with stage.service():
        await stage.until_handled(0, 1, 2)

    await stage.place(3, 4, 5, 6, 7)
    async with stage.admin() as admin:
        await admin.delete_records({Place(stage.topic, 0): RecordsToDelete(7)})
    async with stage.service():
        await stage.until_handled(7)

    assert stage.handled == [0, 1, 2, 7]
    assert stage.told(f"4 records of {stage.topic}[0] were deleted before they were read, 3 to 6")


@pytest.mark.parametrize("then", [1, 2])
@asynchronous
async def test_who_begins_where_records_are_gone_is_told_before_they_are_passed_over(stage: Stage, then: int) -> None:
    """They were there a moment ago, when it was looked where to begin. Who insists is not told for ever."""
    await stage.create()
    await stage.place(0, 1, 2)
    async with stage.admin() as admin:
        await admin.delete_records({Place(stage.topic, 0): RecordsToDelete(2)})
    begun: list[int] = []

    class Reader:
        async def revoked(self, partitions: frozenset[TopicPartition]) -> None: ...

        async def assigned(self, partitions: frozenset[TopicPartition]) -> None:
            (partition,) = partitions
            begun.append(then if begun else 1)
            subscription.seek(partition, begun[-1])

    records: list[Record] = []
    async with (
        asyncio.timeout(AT_MOST),
        stage.transport() as transport,
        transport.subscribe([stage.topic], group=stage.name, listener=Reader()) as subscription,
    ):
        while not records:
            records += await subscription.fetch(max_records=10, wait=timedelta(milliseconds=100))

    assert (begun, [record.offset for record in records]) == ([1, then], [2])


@asynchronous
async def test_a_topic_that_was_cut_back_is_told_and_read_from_its_end(stage: Stage) -> None:
    await stage.create()
    await stage.place(0, 1, 2)
    async with stage.service():
        await stage.until_handled(0, 1, 2)

    stage.set_watermark(50)
    async with stage.service():
        await stage.place(3)
        await stage.until_handled(3)

    assert stage.handled == [0, 1, 2, 3]
    assert stage.told(f"{stage.topic}[0] was cut back: it ends at 3 and had been read up to 50")


@asynchronous
async def test_offsets_that_a_group_has_forgotten_are_told_and_nothing_is_read_twice(stage: Stage) -> None:
    await stage.create()
    await stage.place(0, 1, 2)
    async with stage.service():
        await stage.until_handled(0, 1, 2)

    async with stage.admin() as admin:
        coordinator = await admin.find_coordinator(stage.name)
        response = await admin._send_request(DeleteGroupsRequest([stage.name]), coordinator)
        assert [code for _, code in response.results] == [0]
    await stage.place(3)
    async with stage.service():
        await stage.until_handled(3)

    assert stage.handled == [0, 1, 2, 3]
    assert stage.told("its group has no offset of 1 partitions that it has read")


@asynchronous
async def test_a_service_that_finds_everything_as_it_was_says_nothing(stage: Stage) -> None:
    await stage.create()
    await stage.place(0)
    for number in (1, 2):
        async with stage.service():
            await stage.place(number)
            await stage.until_handled(number)

    assert stage.handled == [0, 1, 2]
    for text in ("not the one it was", "cut back", "deleted before", "no offset of"):
        assert not stage.told(text)
