"""`topic_switch`: more partitions are used when nothing can be overtaken by that, and not before (rule 8)."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from microflow.clocks import SystemClock
from microflow.errors import MicroflowError, TargetError
from microflow.ports import Changes, OutboxRow, Record, TopicPartition
from microflow.stores.sqlite import SqliteStore
from microflow.topic_switch import Switched, switch_topic
from microflow.transports.local import LocalTransport
from tests.asynchronous import asynchronous


@dataclass
class Reader:
    """A group that reads, and says how far it is when it is told to."""

    subscription: Any = None
    partitions: frozenset[TopicPartition] = field(default_factory=frozenset)

    async def revoked(self, partitions: frozenset[TopicPartition]) -> None: ...

    async def assigned(self, partitions: frozenset[TopicPartition]) -> None:
        self.partitions = partitions
        for partition in partitions:
            self.subscription.seek(partition, 0)


@dataclass
class Place:
    store: SqliteStore
    log: LocalTransport

    async def switch(self, *, force: bool = False, topic: str = "orders") -> Switched:
        return await switch_topic(topic, outbox=self.store.outbox, transport=self.log, force=force)

    async def publish(self, *, partition: int = 0) -> None:
        assert await self.log.publish([Record("orders", partition, b"key", b"value", ())]) == [None]

    async def used(self) -> int:
        return (await self.store.outbox.partition_counts({"orders": 99}))["orders"]

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[Callable[[int], Awaitable[None]]]:
        """A group of one member, and how to let it commit that it has read so many records of partition 0."""
        reader = Reader()
        async with self.log.subscribe(["orders"], group="shop", listener=reader) as reader.subscription:
            while not reader.partitions:
                await reader.subscription.fetch(max_records=1, wait=timedelta(milliseconds=10))

            async def has_read(records: int) -> None:
                await reader.subscription.commit({TopicPartition("orders", 0): records}, metadata="")

            yield has_read


@asynccontextmanager
async def place() -> AsyncIterator[Place]:
    """A topic of two partitions, of which two are used, and which has five by now."""
    clock = SystemClock()
    store = await SqliteStore.open(Path("shop.db"), service="shop", clock=clock, memory=True)
    log = LocalTransport.open(Path("log.db"), clock=clock, memory=True, partitions=2, session_timeout=None)
    await log.topics.ensure(["orders"])
    await store.outbox.partition_counts({"orders": 2})
    await log.administration.grow({"orders": 5})
    try:
        yield Place(store, log)
    finally:
        await log.close()
        await store.close()


@asynchronous
async def test_all_partitions_are_used_when_everything_is_published_and_read() -> None:
    """Rule 8: "until `microflow topics switch` (empty outbox, drained consumers)"."""
    async with place() as it, it.reading() as has_read:
        await it.publish()
        await has_read(1)

        assert await it.switch() == Switched(2, 5)
        assert await it.used() == 5
        assert await it.switch() == Switched(5, 5)


@asynchronous
async def test_nothing_is_switched_while_a_group_has_something_to_read() -> None:
    """Rule 8: "drained consumers", said with who it is and how far behind."""
    async with place() as it, it.reading() as has_read:
        await it.publish()
        await it.publish()
        await has_read(1)
        with pytest.raises(MicroflowError, match=r"Not everything of orders has been read: shop \(1\)\."):
            await it.switch()

        assert await it.used() == 2
        assert await it.switch(force=True) == Switched(2, 5)


@asynchronous
async def test_nothing_is_switched_while_the_outbox_holds_events_of_the_topic() -> None:
    """Rule 8: "empty outbox": they may be on their way."""
    async with place() as it:
        row = OutboxRow("orders", b"key", b"value", (), SystemClock().now())
        async with it.store.transaction() as transaction:
            await transaction.write(Changes(outbox=[row, OutboxRow("else", None, None, (), row.created_at)]))
        with pytest.raises(MicroflowError, match="1 event for orders wait in this outbox"):
            await it.switch()
        assert await it.used() == 2

        await it.store.outbox.delete([1])
        assert await it.switch() == Switched(2, 5)


@asynchronous
async def test_nothing_is_switched_if_somebody_has_published_since_the_groups_were_asked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Rule 8: what is published between the question and the switch is unread after it."""
    async with place() as it, it.reading() as has_read:
        await it.publish()
        await has_read(1)
        ask = it.log.administration.lags

        async def ask_and_publish(topic: str) -> object:
            lags = await ask(topic)
            await it.publish()
            return lags

        monkeypatch.setattr(it.log.administration, "lags", ask_and_publish)
        with pytest.raises(MicroflowError, match="Events were published to orders meanwhile"):
            await it.switch()

        assert await it.used() == 2


@asynchronous
async def test_a_topic_that_was_made_anew_with_fewer_partitions_can_be_switched_to() -> None:
    """Rule 8: what names both numbers names the way out as well."""
    async with place() as it:
        await it.log.topics.ensure(["small"])
        async with it.store.outbox.switching("small", partitions=9):
            pass

        assert await it.switch(topic="small") == Switched(9, 2)


@asynchronous
async def test_a_topic_that_is_not_there_is_told_with_what_may_have_been_meant() -> None:
    """Rule 23's "did you mean"."""
    async with place() as it:
        with pytest.raises(TargetError) as slip:
            await it.switch(topic="ordres")
        with pytest.raises(TargetError) as other:
            await it.switch(topic="Nope")

    assert slip.value.fix == "Did you mean orders?"
    assert other.value.what == "The log has no topic Nope."
    assert (other.value.why or "").startswith("It has orders")
    assert (other.value.fix or "").startswith("microflow topics plan TARGET")
