"""What a group's coordinator is asked: offsets for displays of lag, and who is a member."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping
from datetime import timedelta
from functools import partial
from typing import Any, NamedTuple

from aiokafka import errors as kafka
from aiokafka.protocol.admin import DescribeGroupsRequest, ListGroupsRequest
from aiokafka.protocol.commit import OffsetCommitRequest, OffsetFetchRequest

from microflow.errors import TransportError
from microflow.ports import Committed, TopicPartition
from microflow.transports.kafka.client import Client, as_it_is, check

UNTIL_COMMITTED = timedelta(seconds=3)
"""Offsets are for displays: nobody waits longer for them, least of all whoever gives partitions away."""

OVER = (kafka.UnknownMemberIdError, kafka.IllegalGenerationError, kafka.RebalanceInProgressError)


class Generation(NamedTuple):
    """A member's place in one generation of its group. The coordinator refuses an offset of any other."""

    number: int
    member_id: str


async def commit(
    client: Client,
    group: str,
    generation: Generation,
    offsets: Mapping[TopicPartition, int],
    *,
    metadata: str,
) -> None:
    """Store offsets in the name of a generation. Raises TransportError if it is over."""
    by_topic: dict[str, list[tuple[int, int, str]]] = defaultdict(list)
    for (topic, partition), offset in offsets.items():
        by_topic[topic].append((partition, offset, metadata))
    if not by_topic:
        return
    request = OffsetCommitRequest(group, generation.number, generation.member_id, -1, list(by_topic.items()))

    def read(response: Any) -> None:
        for topic, partitions in response.topics:
            for _partition, code in partitions:
                if kafka.for_code(code) in OVER:
                    raise TransportError(f"an offset of group {group} comes too late: its generation is over")
                _check_coordinator(client, group, code, topic)

    of = client.coordinator_of(group)
    await client.ask(request, read, doing=f"to commit offsets of group {group}", of=of, within=UNTIL_COMMITTED)


async def committed(
    client: Client, group: str, partitions: Collection[TopicPartition]
) -> Mapping[TopicPartition, Committed]:
    """The offsets that were stored last; partitions that have none are left out."""
    by_topic: dict[str, list[int]] = defaultdict(list)
    for topic, partition in partitions:
        by_topic[topic].append(partition)
    if not by_topic:
        return {}

    def read(response: Any) -> dict[TopicPartition, Committed]:
        _check_coordinator(client, group, getattr(response, "error_code", 0), group)
        found = {}
        for topic, answers in response.topics:
            for partition, offset, metadata, code in answers:
                _check_coordinator(client, group, code, topic)
                if offset >= 0:
                    found[TopicPartition(topic, partition)] = Committed(offset, metadata or "")
        return found

    request = OffsetFetchRequest(group, list(by_topic.items()))
    return await client.ask(request, read, doing=f"to read offsets of group {group}", of=client.coordinator_of(group))


async def groups(client: Client) -> frozenset[str]:
    """All groups of the cluster that we may know of."""

    def read(response: Any) -> list[str]:
        check(response.error_code)
        return [group[0] for group in response.groups]

    found: set[str] = set()
    for broker in (await client.topics([], as_it_is)).brokers:
        found.update(await client.ask(ListGroupsRequest(), read, doing="to list groups", of=partial(_node, broker[0])))
    return frozenset(found)


async def is_member(client: Client, group: str, member_id: str) -> bool | None:
    """Whether the coordinator counts somebody among the members; None while the group is changing."""

    def read(response: Any) -> bool | None:
        code, _group, state, _type, _protocol, members, *_ = response.groups[0]
        _check_coordinator(client, group, code, group)
        return any(member[0] == member_id for member in members) if state in ("Stable", "Empty", "Dead") else None

    request = DescribeGroupsRequest([group])
    return await client.ask(request, read, doing=f"to look at group {group}", of=client.coordinator_of(group))


async def _node(number: int) -> int:
    return number


def _check_coordinator(client: Client, group: str, code: int, about: str) -> None:
    if code and kafka.for_code(code).retriable:
        client.forget_coordinator(group)
    check(code, about)
