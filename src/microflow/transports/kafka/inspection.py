"""Looking at a cluster: its brokers, how safe its topics are, what we may do with them, and who is in a group."""

from __future__ import annotations

from collections.abc import Collection
from datetime import timedelta
from typing import Any

from aiokafka import errors as kafka
from aiokafka.protocol.admin import DescribeConfigsRequest

from microflow.errors import LogRefused
from microflow.ports import GroupMember, GroupState, LogState, TopicState
from microflow.transports.kafka.administration import MIN_IN_SYNC, RETENTION, layout_of
from microflow.transports.kafka.client import Client, as_it_is, check
from microflow.transports.kafka.limits import TOPIC, configs
from microflow.transports.kafka.protocol import DescribeGroup
from microflow.transports.kafka.topics import LEGAL, MISSING

UNCLEAN = "unclean.leader.election.enable"
READ, WRITE = 3, 4
NOT_TOLD = -(2**31)
"""What a broker that was not asked, or is too old, says of what we may do."""
DENIED = frozenset({kafka.TopicAuthorizationFailedError.errno, kafka.GroupAuthorizationFailedError.errno})
WITHIN = timedelta(seconds=2.5)


class KafkaInspection:
    """`microflow.ports.Inspection` of a cluster."""

    def __init__(self, client: Client) -> None:
        self._client = client

    @property
    def client_id(self) -> str:
        return self._client.settings.client_id

    async def log(self, topics: Collection[str]) -> LogState:
        names = [name for name in topics if LEGAL.fullmatch(name)]
        metadata = await self._client.topics(names, as_it_is, permissions=True)
        settings = await self._settings([topic[1] for topic in metadata.topics if topic[0] == 0])
        return LogState(
            brokers=len(metadata.brokers),
            topics={
                topic[1]: _topic_state(topic, settings.get(topic[1], {}))
                for topic in metadata.topics
                if topic[0] not in MISSING
            },
        )

    async def group(self, name: str) -> GroupState:
        def read(response: Any) -> GroupState:
            code, _, _, _, _, members, allowed = response.groups[0]
            if code in DENIED:
                return GroupState(members=(), may_join=False)
            if kafka.for_code(code).retriable:
                self._client.forget_coordinator(name)
            check(code, name)
            who = tuple(GroupMember(client_id, host.removeprefix("/")) for _, client_id, host, _, _ in members)
            return GroupState(members=who, may_join=_may(READ, allowed))

        of = self._client.coordinator_of(name)
        try:
            return await self._client.ask(
                DescribeGroup(name), read, doing=f"to look at group {name}", of=of, within=WITHIN
            )
        except LogRefused:  # not even who coordinates it is told
            return GroupState(members=(), may_join=False)

    async def _settings(self, names: Collection[str]) -> dict[str, dict[str, str]]:
        if not names:
            return {}
        wanted = [(TOPIC, name, [RETENTION, MIN_IN_SYNC, UNCLEAN]) for name in names]
        return await self._client.ask(
            DescribeConfigsRequest(wanted, False), configs, doing="to read the settings of topics", within=WITHIN
        )


def _topic_state(topic: Any, settings: dict[str, str]) -> TopicState:
    code, _name, _id, _internal, partitions, allowed, *_ = topic
    if code in DENIED:
        return TopicState(layout=None, may_read=False, may_write=False)
    copies = len(partitions[0][4]) if partitions else None
    return TopicState(
        layout=layout_of(len(partitions), copies, settings),
        unclean=settings[UNCLEAN] == "true" if UNCLEAN in settings else None,
        may_read=_may(READ, allowed),
        may_write=_may(WRITE, allowed),
    )


def _may(operation: int, allowed: int) -> bool | None:
    return None if allowed == NOT_TOLD else bool(allowed >> operation & 1)
