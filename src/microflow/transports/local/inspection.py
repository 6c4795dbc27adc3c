"""Looking at the local log: it is one file, everybody may do everything, and its members are our own processes."""

from __future__ import annotations

from collections.abc import Collection

from microflow.ports import GroupMember, GroupState, LogState, TopicLayout, TopicState
from microflow.transports.local import groups
from microflow.transports.local.log import Log


class LocalInspection:
    """`microflow.ports.Inspection` on the local log."""

    client_id = "microflow"

    def __init__(self, log: Log) -> None:
        self._log = log

    async def log(self, topics: Collection[str]) -> LogState:
        stored = self._log.topics()
        found = {name: TopicLayout(partitions=stored[name].topic.partitions) for name in topics if name in stored}
        return LogState(brokers=1, topics={name: TopicState(layout=layout) for name, layout in found.items()})

    async def group(self, name: str) -> GroupState:
        with self._log.reading() as connection:
            members = groups.members(connection, name)
        return GroupState(members=tuple(GroupMember(self.client_id, "this machine") for _ in members))
