"""Clients of another make, Kafka's own console tools and librdkafka, read what a service writes and write what it
handles; and a key is on the same partition whoever writes it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import random
import time
import uuid
from collections.abc import AsyncIterator, Collection, Mapping
from pathlib import Path

import confluent_kafka
import pytest

from microflow.events import Message
from microflow.hosting import running
from microflow.partitioner import Partitioner
from microflow.ports import TopicLayout
from microflow.reports import Report
from microflow.service import Service
from microflow.settings import Settings
from microflow.transports.kafka import ClientSettings, KafkaTransport
from servers.finding import Found
from tests.asynchronous import asynchronous
from tests.transports.kafka.tools import run_tool
from tests.user_code import user_module

AT_MOST = 60.0
PARTITIONS = 7
KEYS = 300
SOURCE = """
class OrderPlaced(Event, key="order_id"):
    order_id: str
    note: str

class PaymentTaken(Event, key="order_id", topic="{payments}"):
    order_id: str
    note: str

got: list[Event] = []

@on("OrderPlaced", topic="{orders}")
async def take(order: OrderPlaced) -> PaymentTaken:
    got.append(order)
    return PaymentTaken(order_id=order.order_id, note=order.note)

service = Service("{name}")
"""


class Stage:
    """Two topics, and a service that answers each order with a payment of the same key."""

    def __init__(self, servers: str, folder: Path) -> None:
        mark = uuid.uuid4().hex[:12]
        self.servers = servers
        self.orders, self.payments = f"orders-{mark}", f"payments-{mark}"
        self.name = f"cashier-{mark}"
        self.reports: list[Report] = []
        self.got: list[Message] = []
        self._folder = folder
        self._changed = asyncio.Event()

    @contextlib.asynccontextmanager
    async def service(self) -> AsyncIterator[None]:
        """The service at work, on topics of several partitions."""
        await create(self.servers, self.orders, self.payments)
        source = SOURCE.format(orders=self.orders, payments=self.payments, name=self.name)
        module = user_module(self._folder, source, name=self.name.replace("-", "_"))
        service = module.service
        assert isinstance(service, Service)
        self.got = module.got
        settings = Settings(home=self._folder, kafka=self.servers)
        async with asyncio.timeout(AT_MOST), running(service, settings=settings, observe=self._note):
            yield

    async def until_handled(self, count: int) -> None:
        async with asyncio.timeout(AT_MOST):
            while len(self.reports) < count:
                self._changed.clear()
                await self._changed.wait()

    def _note(self, report: Report) -> None:
        self.reports.append(report)
        self._changed.set()


async def create(servers: str, *topics: str) -> None:
    transport = await KafkaTransport.open(ClientSettings(servers=servers))
    try:
        await transport.administration.create({topic: TopicLayout(partitions=PARTITIONS) for topic in topics})
    finally:
        await transport.close()


def console_producer(servers: str, topic: str, lines: Collection[tuple[str, str]]) -> None:
    """Write keys and values with Kafka's own tool, which gives a record no headers."""
    text = "".join(f"{key}\t{value}\n" for key, value in lines)
    given = ("--bootstrap-server", servers, "--topic", topic, "--reader-property", "parse.key=true")
    run_tool("org.apache.kafka.tools.ConsoleProducer", *given, text=text)


def console_consumer(servers: str, topic: str, *, count: int) -> list[list[str]]:
    """The partition, headers, key and value of each record, as Kafka's own tool prints them."""
    shown = ["print.partition=true", "print.headers=true", "print.key=true", "headers.separator=|"]
    given = [part for each in shown for part in ("--formatter-property", each)]
    until = ("--from-beginning", "--max-messages", str(count), "--timeout-ms", "30000")
    printed = run_tool(
        "org.apache.kafka.tools.consumer.ConsoleConsumer",
        "--bootstrap-server",
        servers,
        "--topic",
        topic,
        *given,
        *until,
    )
    return [line.split("\t") for line in printed.splitlines()]


def produce(servers: str, topic: str, *records: tuple[bytes, bytes, Mapping[str, bytes]]) -> dict[bytes, int]:
    """Write keys, values and headers with librdkafka; return the partition of each key."""
    partitions: dict[bytes, int] = {}

    def delivered(error: confluent_kafka.KafkaError | None, message: confluent_kafka.Message) -> None:
        assert error is None, error
        key, partition = message.key(), message.partition()
        assert isinstance(key, bytes)
        assert partition is not None
        partitions[key] = partition

    producer = confluent_kafka.Producer({"bootstrap.servers": servers, "partitioner": "murmur2_random"})
    for key, value, headers in records:
        producer.produce(topic, key=key, value=value, headers=list(headers.items()), on_delivery=delivered)
    assert producer.flush(AT_MOST) == 0
    return partitions


def consume(servers: str, topic: str, *, count: int) -> list[confluent_kafka.Message]:
    """Read records with librdkafka, as a member of a group of its own."""
    consumer = confluent_kafka.Consumer(
        {"bootstrap.servers": servers, "group.id": f"{topic}-readers", "auto.offset.reset": "earliest"}
    )
    messages: list[confluent_kafka.Message] = []
    end = time.monotonic() + AT_MOST
    try:
        consumer.subscribe([topic])
        while len(messages) < count and time.monotonic() < end:
            message = consumer.poll(1.0)
            if message is not None:
                assert message.error() is None, message.error()
                messages.append(message)
    finally:
        consumer.close()
    return messages


def order(number: int, note: str = "") -> str:
    return json.dumps({"order_id": f"o-{number}", "note": note}, ensure_ascii=False)


@pytest.fixture
def stage(kafka: Found, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> Stage:
    caplog.set_level(logging.CRITICAL, logger="aiokafka")
    return Stage(kafka.address, tmp_path)


@asynchronous
async def test_what_kafkas_console_producer_writes_is_handled_and_its_console_consumer_prints_the_answer(
    stage: Stage,
) -> None:
    note = "für Zoë, 3 € - 日本"
    async with stage.service():
        lines = [(f"o-{number}", order(number, note)) for number in range(20)]
        await asyncio.to_thread(console_producer, stage.servers, stage.orders, lines)
        await stage.until_handled(20)
        printed = await asyncio.to_thread(console_consumer, stage.servers, stage.payments, count=20)

    assert {report.outcome for report in stage.reports} == {"done"}
    by_key = {key: (partition, headers, value) for partition, headers, key, value in printed}
    assert len(by_key) == 20
    for report in stage.reports:
        key = (report.record.key or b"").decode()
        partition, headers, value = by_key[key]
        attributes = dict(header.split(":", 1) for header in headers.split("|"))
        assert partition == f"Partition:{report.record.partition}", "a key has one partition, whoever writes it"
        assert json.loads(value) == {"order_id": key, "note": note}
        assert attributes.pop("ce_time").endswith("Z")
        [emitted] = report.emitted
        assert attributes == {
            "content-type": "application/json",
            "ce_specversion": "1.0",
            "ce_id": emitted.id,
            "ce_type": "PaymentTaken",
            "ce_source": f"/services/{stage.name}",
            "ce_correlationid": report.flow,
            "ce_causationid": report.event_id,
            "ce_partitionkey": key,
        }


@asynchronous
async def test_what_librdkafka_writes_as_a_cloudevent_is_handled_as_that_event_and_the_answer_is_read(
    stage: Stage,
) -> None:
    """Binary mode: the attributes are headers."""
    headers = {
        "ce_specversion": b"1.0",
        "ce_id": b"A-1234",
        "ce_type": b"OrderPlaced",
        "ce_source": b"//shop.example/caf\xc3\xa9",
        "ce_time": b"2026-04-05T17:31:00.5+02:00",
        "ce_correlationid": b"flow-7",
        "ce_unknown": b"\xff",
        "content-type": b"application/json; charset=utf-8",
    }
    async with stage.service():
        written = order(1, "binary").encode()
        produced = await asyncio.to_thread(
            produce, stage.servers, stage.orders, (b"o-1", written, headers), (b"o-1", written, headers)
        )
        await stage.until_handled(2)
        [message] = await asyncio.to_thread(consume, stage.servers, stage.payments, count=1)

    assert [report.outcome for report in stage.reports] == ["done", "duplicate"], "source and id make an event one"
    report = stage.reports[0]
    assert (report.event_id, report.flow, report.event_type) == ("A-1234", "flow-7", "OrderPlaced")
    attributes = dict(message.headers() or [])
    assert message.key() == b"o-1"
    assert message.partition() == produced[b"o-1"]
    assert json.loads(message.value() or b"") == {"order_id": "o-1", "note": "binary"}
    assert attributes["ce_id"] == report.emitted[0].id.encode()
    assert attributes["ce_type"] == b"PaymentTaken"
    assert attributes["ce_correlationid"] == b"flow-7"
    assert attributes["ce_causationid"] == b"A-1234"


@asynchronous
async def test_what_librdkafka_writes_as_a_cloudevent_in_one_piece_is_handled(stage: Stage) -> None:
    """Structured mode: the attributes are in the value, with the data."""
    event = {
        "specversion": "1.0",
        "id": "A-1235",
        "type": "OrderPlaced",
        "source": "//shop.example",
        "correlationid": "flow-8",
        "datacontenttype": "application/json",
        "data": {"order_id": "o-2", "note": "structured"},
    }
    headers = {"content-type": b"application/cloudevents+json; charset=UTF-8"}
    async with stage.service():
        await asyncio.to_thread(produce, stage.servers, stage.orders, (b"o-2", json.dumps(event).encode(), headers))
        await stage.until_handled(1)

    [report] = stage.reports
    assert (report.outcome, report.event_id, report.flow) == ("done", "A-1235", "flow-8")
    assert [event.model_dump() for event in stage.got] == [{"order_id": "o-2", "note": "structured"}]


@asynchronous
async def test_what_librdkafka_writes_as_plain_json_is_handled_each_record_as_an_event_of_its_own(stage: Stage) -> None:
    async with stage.service():
        record = (b"o-3", order(3, "plain").encode(), dict[str, bytes]())
        await asyncio.to_thread(produce, stage.servers, stage.orders, record, record)
        await stage.until_handled(2)

    assert [report.outcome for report in stage.reports] == ["done", "done"]
    assert len({report.event_id for report in stage.reports}) == 2


@asynchronous
async def test_a_key_is_on_the_partition_where_kafkas_own_producer_puts_it(kafka: Found) -> None:
    topic = f"keys-{uuid.uuid4().hex[:12]}"
    await create(kafka.address, topic)
    random_one = random.Random(4)
    letters = "abcdefghijklmnopqrstuvwxyz0123456789-_é€日🜁 "
    keys = {"".join(random_one.choices(letters, k=random_one.randint(1, 40))) for _ in range(KEYS)}

    await asyncio.to_thread(console_producer, kafka.address, topic, [(key, "-") for key in keys])
    messages = await asyncio.to_thread(consume, kafka.address, topic, count=len(keys))

    found = {key: message.partition() for message in messages if isinstance(key := message.key(), bytes)}
    partitioner = Partitioner()
    assert found == {key: partitioner.partition(key, partitions=PARTITIONS) for key in map(str.encode, keys)}
    assert set(found.values()) == set(range(PARTITIONS))


@asynchronous
async def test_a_key_of_any_bytes_is_on_the_partition_where_librdkafkas_murmur2_puts_it(kafka: Found) -> None:
    topic = f"keys-{uuid.uuid4().hex[:12]}"
    await create(kafka.address, topic)
    random_one = random.Random(4)
    keys = {random_one.randbytes(random_one.randint(1, 40)) for _ in range(KEYS)}

    found = await asyncio.to_thread(produce, kafka.address, topic, *((key, b"-", {}) for key in keys))

    partitioner = Partitioner()
    assert found == {key: partitioner.partition(key, partitions=PARTITIONS) for key in keys}
