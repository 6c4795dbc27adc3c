"""Switching: those who write a topic begin to use all its partitions. This is what `microflow topics switch` does.

    switched = await switch_topic("orders", outbox=store.outbox, transport=transport)

It is done for one database at a time: that of each service that writes the topic.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from microflow.errors import MicroflowError, TargetError, nearest
from microflow.ports import Bounds, Outbox, TopicPartition, Transport

MOST_GROUPS = 5
MOST_TOPICS = 8


class Switched(NamedTuple):
    """How many partitions of a topic were used, and how many are now."""

    before: int
    after: int


async def switch_topic(topic: str, *, outbox: Outbox, transport: Transport, force: bool = False) -> Switched:
    """Use as many partitions of a topic as it has, if nothing can be overtaken by that.

    Raises TargetError for a topic that the log does not have, and MicroflowError while events of the topic wait in
    this outbox, are unread by a group, or are being published; with `force` only the former.
    """
    found = (await transport.topics.describe([topic])).get(topic)
    if found is None:
        there = sorted(await transport.topics.describe())
        near = nearest(topic, there)
        raise TargetError(
            f"The log has no topic {topic}.",
            why=f"It has {_listed(there)}." if there else "It has none at all.",
            fix=f"Did you mean {near}?" if near else "microflow topics plan TARGET     shows those of a service",
        )
    used = (await outbox.partition_counts({topic: found.partitions}))[topic]
    if used == found.partitions:
        return Switched(used, used)
    before = await _bounds(topic, transport, partitions=max(used, found.partitions))
    if not force:
        _check_lags(topic, await transport.administration.lags(topic))
    async with outbox.switching(topic, partitions=found.partitions) as pending:
        if not force:
            _check_pending(topic, pending)
            # Nobody commits now. If nothing was added since the groups were asked, they have read everything.
            _check_quiet(topic, before, await _bounds(topic, transport, partitions=max(used, found.partitions)))
    return Switched(used, found.partitions)


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - MOST_TOPICS} more" if len(names) > MOST_TOPICS else ""
    return f"{', '.join(names[:MOST_TOPICS])}{more}"


async def _bounds(topic: str, transport: Transport, *, partitions: int) -> Mapping[TopicPartition, Bounds]:
    return await transport.topics.bounds([TopicPartition(topic, number) for number in range(partitions)])


def _check_lags(topic: str, lags: Mapping[str, int]) -> None:
    behind = sorted(((lag, group) for group, lag in lags.items() if lag > 0), reverse=True)
    if not behind:
        return
    groups = ", ".join(f"{group} ({lag})" for lag, group in behind[:MOST_GROUPS])
    more = f" and {len(behind) - MOST_GROUPS} more" if len(behind) > MOST_GROUPS else ""
    raise MicroflowError(
        f"Not everything of {topic} has been read: {groups}{more}.",
        why="The next events of a key could be handled before those.",
        fix=f"Stop what writes {topic}, wait for those groups, and try again (or add --force)",
    )


def _check_pending(topic: str, pending: int) -> None:
    if pending:
        raise MicroflowError(
            f"{pending} event{'s' if pending > 1 else ''} for {topic} wait in this outbox.",
            why="They may be on their way to the partitions that are used now.",
            fix=f"Stop what writes {topic}, let it be published (microflow relay), and try again",
        )


def _check_quiet(topic: str, before: Mapping[TopicPartition, Bounds], after: Mapping[TopicPartition, Bounds]) -> None:
    if {each: bounds.end for each, bounds in before.items()} != {each: bounds.end for each, bounds in after.items()}:
        raise MicroflowError(
            f"Events were published to {topic} meanwhile.",
            why="The next events of their keys could be handled before them.",
            fix=f"Stop what writes {topic}, and try again",
        )
