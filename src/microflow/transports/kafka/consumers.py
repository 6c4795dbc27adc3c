"""aiokafka's consumer as we use it, and how it comes by its partitions: as a member of a group, or all of them."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any, Protocol

from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener
from aiokafka.coordinator.assignors.sticky.sticky_assignor import StickyPartitionAssignor
from aiokafka.structs import TopicPartition as Place

from microflow.ports import TopicPartition
from microflow.transports.kafka.client_settings import ClientSettings

NEVER_MS = 2**31 - 1


class Ear(Protocol):
    """Who is told what becomes of a consumer's partitions."""

    async def taken_away(self) -> None: ...

    async def handed_out(self, partitions: frozenset[TopicPartition]) -> None: ...


def make_consumer(settings: ClientSettings, *, group: str | None) -> AIOKafkaConsumer:
    """A consumer that is not started yet. It returns bytes, commits nothing and never chooses an offset by itself."""
    member = {} if group is None else settings.member()
    # aiokafka keeps what a member had in its assignor's class, and would mix up the members of a process.
    assignor = type("Assignor", (StickyPartitionAssignor,), {})
    return AIOKafkaConsumer(
        **settings.consumer(),
        **member,
        group_id=group,
        enable_auto_commit=False,
        auto_offset_reset="none",
        isolation_level="read_committed",
        partition_assignment_strategy=(assignor,),
        max_poll_interval_ms=NEVER_MS,
    )


def join(consumer: AIOKafkaConsumer, topics: Collection[str], ear: Ear) -> None:
    """Take part in the group's assignments, and have every one told."""
    consumer.subscribe(topics=list(topics), listener=_Listening(ear))


def stand_still(consumer: AIOKafkaConsumer, partitions: Iterable[TopicPartition]) -> None:
    """Fetch nothing of these partitions until they are sought; without a position aiokafka would look for one."""
    places = [Place(*partition) for partition in partitions]
    for place in places:
        consumer.seek(place, 0)
    consumer.pause(*places)


class _Listening(ConsumerRebalanceListener):
    def __init__(self, ear: Ear) -> None:
        self._ear = ear

    async def on_partitions_revoked(self, revoked: Any) -> None:
        await self._ear.taken_away()

    async def on_partitions_assigned(self, assigned: Any) -> None:
        await self._ear.handed_out(frozenset(TopicPartition(*each) for each in assigned))
