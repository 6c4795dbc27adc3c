"""Traps of aiokafka (0.14), each sprung on a real Kafka: what stands still without a word is noticed and begun anew,
what was given up is never sent after all, and what a listener raises is heard."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType

from microflow.conformance.transports.harness import Member, fetching, member_of, publish, values
from microflow.errors import RecordTooLarge, TransportError
from microflow.ports import Record, TopicLayout
from microflow.transports.kafka import ClientSettings, KafkaTransport, following
from servers.finding import Found
from servers.kafka import Kafka
from tests.asynchronous import asynchronous

AT_MOST = 30.0
PARTITIONS = 2


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, logger="aiokafka")
    caplog.set_level(logging.WARNING, logger="microflow")


@pytest.fixture(scope="module")
def broker() -> Iterator[Kafka]:
    """A broker behind a cable that a test may cut, and mends."""
    with Kafka(proxied=True) as kafka:
        yield kafka


def new_name(kind: str) -> str:
    return f"{kind}-{uuid.uuid4().hex[:12]}"


@contextlib.asynccontextmanager
async def opened(servers: str, **settings: Any) -> AsyncIterator[KafkaTransport]:
    transport = await KafkaTransport.open(ClientSettings(servers=servers, **settings))
    try:
        async with asyncio.timeout(AT_MOST):
            yield transport
    finally:
        await transport.close()


async def new_topic(transport: KafkaTransport, *, partitions: int = PARTITIONS) -> str:
    name = new_name("traps")
    await transport.administration.create({name: TopicLayout(partitions=partitions)})
    return name


def numbered(topic: str, *numbers: int, partition: int = 0) -> list[Record]:
    return [Record(topic, partition, b"key", str(number).encode()) for number in numbers]


def consumer_of(member: Member) -> AIOKafkaConsumer:
    """aiokafka's own consumer behind a subscription."""
    subscription: Any = member.subscription
    consumer = subscription._following._consumer
    assert consumer is not None
    return consumer


async def until_read(member: Member, *numbers: int) -> None:
    await member.until(lambda: values(member.records)[-len(numbers) :] == list(numbers))


# ── a consumer that stands still ──────────────────────────────────────────────────────────────────────────────────


@asynchronous
async def test_a_consumer_whose_fetching_has_ended_is_replaced(kafka: Found, caplog: pytest.LogCaptureFixture) -> None:
    """Failure 75: `getmany` goes on waiting for a task that is gone."""
    async with opened(kafka.address) as transport:
        topic = await new_topic(transport)
        async with member_of(transport, [topic], group=new_name("group")) as member, fetching(member):
            await publish(transport, *numbered(topic, 1))
            await until_read(member, 1)

            consumer_of(member)._fetcher._fetch_task.cancel()
            member.starts = {record.source: record.offset + 1 for record in member.records}
            began = time.monotonic()
            await publish(transport, *numbered(topic, 2))
            await until_read(member, 2)

    assert time.monotonic() - began < following.STALLED_AFTER, "its end is seen at once, not when nothing comes"
    assert "has ended by itself, and is begun anew" in caplog.text
    assert [kind for kind, _ in member.told][:3] == ["assigned", "revoked", "assigned"]


@asynchronous
async def test_a_consumer_whose_coordination_has_ended_is_replaced(
    kafka: Found, caplog: pytest.LogCaptureFixture
) -> None:
    """Failure 75: its heart goes on beating, and it would take part in no rebalance any more."""
    async with opened(kafka.address, rebalance_timeout_ms=60_000) as transport:
        topic, group = await new_topic(transport), new_name("group")
        async with member_of(transport, [topic], group=group) as member, fetching(member):
            await member.until(lambda: len(member.partitions) == PARTITIONS)

            consumer_of(member)._coordinator._coordination_task.cancel()
            async with member_of(transport, [topic], group=group) as other, fetching(other):
                await other.until(lambda: len(other.partitions) == PARTITIONS // 2)
                await member.until(lambda: len(member.partitions) == PARTITIONS // 2)

    assert "has ended by itself, and is begun anew" in caplog.text


@asynchronous
async def test_a_consumer_that_fetches_nothing_though_there_is_something_is_replaced(
    kafka: Found, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Failure 75, aiokafka issues 575, 625, 727, 1037: all its tasks run, and none asks the broker."""
    monkeypatch.setattr(following, "STALLED_AFTER", 2.0)
    async with opened(kafka.address) as transport:
        topic = await new_topic(transport)
        async with member_of(transport, [topic], group=new_name("group")) as member, fetching(member):
            await publish(transport, *numbered(topic, 1))
            await until_read(member, 1)

            fetcher = consumer_of(member)._fetcher
            await stand_still(fetcher)
            member.starts = {record.source: record.offset + 1 for record in member.records}
            await publish(transport, *numbered(topic, 2))
            await until_read(member, 2)

    assert f"nothing comes of {topic}[0], and there is something: reading is begun anew" in caplog.text


async def stand_still(fetcher: Any) -> None:
    """Let a fetcher believe that every broker has a request of its in hand, for ever."""

    class Everybody(set[int]):
        def __contains__(self, node: object) -> bool:
            return True

    fetcher._in_flight = Everybody()
    if fetcher._pending_tasks:  # what it has asked already, it takes
        await asyncio.wait(fetcher._pending_tasks)


@asynchronous
async def test_a_consumer_that_has_nothing_to_fetch_is_left_alone(
    kafka: Found, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(following, "STALLED_AFTER", 0.5)
    async with opened(kafka.address) as transport:
        topic = await new_topic(transport)
        async with member_of(transport, [topic], group=new_name("group")) as member, fetching(member):
            await publish(transport, *numbered(topic, 1))
            await until_read(member, 1)
            consumer = consumer_of(member)
            member.subscription.pause(member.partitions)
            await publish(transport, *numbered(topic, 2))  # what is paused is not missed
            await asyncio.sleep(2 * following.LOOK_EVERY + 0.5)
            assert consumer_of(member) is consumer

    assert "begun anew" not in caplog.text


@asynchronous
async def test_a_member_whose_heart_has_stopped_joins_anew(
    kafka: Found, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """aiokafka issue 1187: the group knows nothing of it, and it goes on as if it were a member."""
    monkeypatch.setattr(following, "LOOK_FOR_MEMBERSHIP_EVERY", 0.5)
    async with opened(kafka.address, session_timeout_ms=1_000, heartbeat_interval_ms=300) as transport:
        topic, group = await new_topic(transport), new_name("group")
        async with member_of(transport, [topic], group=group) as member, fetching(member):
            await member.until(lambda: len(member.partitions) == PARTITIONS)

            coordinator = consumer_of(member)._coordinator
            beating, coordinator._heartbeat_task = (
                coordinator._heartbeat_task,
                asyncio.create_task(asyncio.Event().wait()),
            )
            beating.cancel()
            await member.until(lambda: [kind for kind, _ in member.told] == ["assigned", "revoked", "assigned"])

    assert f"the group {group} does not know us any more: we join anew" in caplog.text


# ── a producer that was given up ──────────────────────────────────────────────────────────────────────────────────


@asynchronous
async def test_what_was_given_up_while_the_broker_was_away_is_never_sent_after_all(
    broker: Kafka, caplog: pytest.LogCaptureFixture
) -> None:
    """Failure 61: a batch of an idempotent producer never expires. Sent anew by then, it would be out of order."""
    [proxy] = [each.proxy for each in broker.brokers]
    assert proxy is not None
    async with opened(broker.address(), delivery_timeout_ms=1_500) as transport:
        topic = await new_topic(transport)
        await publish(transport, *numbered(topic, 1))
        proxy.cut()
        try:
            [error] = await transport.publish(numbered(topic, 2))
            assert isinstance(error, TransportError)
        finally:
            proxy.heal()
        while any(await transport.publish(numbered(topic, 3))):
            pass
        await asyncio.sleep(2)  # longer than aiokafka waits until it tries again
        await publish(transport, *numbered(topic, 4))

        assert await read_up_to(transport, topic, 4) == [1, 3, 4]
    assert not [record for record in caplog.records if record.name == "asyncio"], "it ended without a word"


@asynchronous
async def test_closing_does_not_wait_for_a_broker_that_is_away(broker: Kafka) -> None:
    """`AIOKafkaProducer.stop` waits for every batch, for ever."""
    [proxy] = [each.proxy for each in broker.brokers]
    assert proxy is not None
    async with contextlib.AsyncExitStack() as stack:
        transport = await stack.enter_async_context(opened(broker.address(), delivery_timeout_ms=60_000))
        topic = await new_topic(transport)
        await publish(transport, *numbered(topic, 1))
        proxy.cut()
        stack.callback(proxy.heal)
        publishing = asyncio.create_task(transport.publish(numbered(topic, 2)))
        await asyncio.sleep(0.5)

        async with asyncio.timeout(10):
            await transport.close()
            [error] = await publishing
    assert isinstance(error, TransportError)


@asynchronous
async def test_after_a_batch_that_the_broker_refused_publishing_goes_on_with_the_next_call(kafka: Found) -> None:
    """aiokafka issue 1017: the producer's sequence has a gap then, and the broker would take nothing more of it."""
    async with opened(kafka.address) as transport:
        topic = await new_topic(transport)
        await publish(transport, *numbered(topic, 1))
        await limit(kafka.address, topic, 5_000)  # after its limit was asked for

        large = Record(topic, 0, b"key", bytes(10_000))
        errors = await transport.publish([large, *numbered(topic, 2)])
        await publish(transport, *numbered(topic, 3, 4))

        read = await read_up_to(transport, topic, 4)
    assert isinstance(errors[0], RecordTooLarge)
    assert isinstance(errors[1], TransportError), "what is behind it would be before it otherwise"
    assert read == [1, 3, 4]


async def read_up_to(transport: KafkaTransport, topic: str, number: int) -> list[int]:
    """The first partition's numbers, up to one that was published last."""
    async with member_of(transport, [topic], group=None) as reader:
        while number not in values(reader.records):
            await reader.fetch()
        return values(reader.records)


async def limit(servers: str, topic: str, most: int) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=servers)
    await admin.start()
    try:
        await admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, topic, {"max.message.bytes": str(most)})])
    finally:
        await admin.close()


# ── a listener that fails ─────────────────────────────────────────────────────────────────────────────────────────


@asynchronous
async def test_what_a_listener_raises_is_raised_by_fetch_and_the_assignment_is_told_again(kafka: Found) -> None:
    """aiokafka only logs it, and reads on from wherever it stands."""
    async with opened(kafka.address) as transport:
        topic = await new_topic(transport)
        await publish(transport, *numbered(topic, 1))
        async with member_of(transport, [topic], group=new_name("group")) as member:

            async def fail() -> None:
                raise LookupError("the store is gone")

            async def succeed() -> None:
                return

            member.before_assigned = fail
            for _ in range(3):
                await until_raised(member, "the store is gone")
            assert member.records == []

            member.before_assigned = succeed
            while not member.records:
                with contextlib.suppress(LookupError):
                    await member.fetch()
    assert values(member.records) == [1]


@asynchronous
async def test_a_listener_that_fails_to_give_up_is_heard_and_taken_to_have_given_up(kafka: Found) -> None:
    async with opened(kafka.address) as transport:
        topic, group = await new_topic(transport), new_name("group")
        async with member_of(transport, [topic], group=group) as one:
            while not one.partitions:
                await one.fetch()

            async def fail() -> None:
                one.partitions = frozenset()
                one.vanish()
                raise LookupError("cannot drain")

            one.before_revoked = fail
            async with member_of(transport, [topic], group=group) as other, fetching(other):
                await until_raised(one, "cannot drain")
                async with fetching(one):
                    await other.until(lambda: len(other.partitions) == PARTITIONS // 2)
                    await one.until(lambda: len(one.partitions) == PARTITIONS // 2)


async def until_raised(member: Member, text: str) -> None:
    """Fetch until a listener's error comes."""
    while True:
        try:
            await member.fetch()
        except LookupError as error:
            if text in str(error):
                return
            raise
