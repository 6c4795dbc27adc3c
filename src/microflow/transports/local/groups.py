"""Consumer groups: who is a member, and how a change of members becomes a new generation.

Any change begins a rebalance: every member is asked to give up its partitions. When all have (or were expelled), the
transaction of the last one hands out the partitions anew. Every function here is one step inside a transaction.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import timedelta

from microflow.ports import Committed, TopicPartition
from microflow.transports.local.assignment import assign
from microflow.transports.local.format import SQL


@dataclass(frozen=True, slots=True)
class Member:
    """A member as the log knows it. `session` is how long it may be silent, `sign` names its sign of life."""

    id: int
    topics: frozenset[str]
    ready: bool
    session: timedelta | None
    sign: str | None


def join(
    connection: sqlite3.Connection,
    group: str,
    topics: Collection[str],
    *,
    session: timedelta | None = None,
    sign: str | None = None,
) -> int:
    """Add a member, which has nothing to give up; return its id."""
    connection.execute(SQL["add group"], (group,))
    begin_rebalance(connection, group)
    seconds = None if session is None else session.total_seconds()
    added = connection.execute(SQL["add member"], (group, json.dumps(sorted(topics)), seconds, sign))
    assert added.lastrowid is not None
    _complete(connection, group)
    return added.lastrowid


def give_up(connection: sqlite3.Connection, group: str, member_id: int) -> None:
    """Note that a member has given up its partitions and waits for the next generation."""
    connection.execute(SQL["ready"], (member_id,))
    _complete(connection, group)


def remove(connection: sqlite3.Connection, group: str, member_ids: Collection[int]) -> None:
    """Remove members that left or fell silent; those that are gone already are no error."""
    gone = connection.executemany(SQL["delete member"], [(member_id, group) for member_id in member_ids])
    if gone.rowcount > 0:
        begin_rebalance(connection, group)
        _complete(connection, group)


def topic_changed(connection: sqlite3.Connection, topic: str) -> None:
    """Begin a rebalance in every group that reads a topic which did not exist, or had fewer partitions."""
    for (group,) in connection.execute(SQL["groups of topic"], (topic,)).fetchall():
        begin_rebalance(connection, group)


def begin_rebalance(connection: sqlite3.Connection, group: str) -> None:
    """Ask all members to give up their partitions, unless they have been asked already."""
    if connection.execute(SQL["begin rebalance"], (group,)).rowcount:
        connection.execute(SQL["nobody is ready"], (group,))


def members(connection: sqlite3.Connection, group: str) -> list[Member]:
    """The members of a group, in the order in which they joined."""
    return [
        Member(number, frozenset(json.loads(topics)), bool(ready), session and timedelta(seconds=session), sign)
        for number, topics, ready, session, sign in connection.execute(SQL["members"], (group,)).fetchall()
    ]


def signs(connection: sqlite3.Connection) -> frozenset[str]:
    """The signs of life of all members of all groups."""
    return frozenset(sign for (sign,) in connection.execute(SQL["signs"]))


def standing(connection: sqlite3.Connection, member_id: int) -> tuple[bool, int | None] | None:
    """Whether a member has given up its partitions, and the generation: None while a rebalance is under way.

    None altogether if it is no member any more.
    """
    row = connection.execute(SQL["standing"], (member_id,)).fetchone()
    if row is None:
        return None
    ready, rebalancing, generation = row
    return bool(ready), None if rebalancing else generation


def is_current(connection: sqlite3.Connection, member_id: int, generation: int) -> bool:
    """Whether a member still has the partitions of a generation, be it that they were asked back."""
    row = connection.execute(SQL["standing"], (member_id,)).fetchone()
    return row is not None and row[2] == generation


def assigned(connection: sqlite3.Connection, group: str, member_id: int) -> dict[TopicPartition, int]:
    """A member's partitions, with their ids."""
    rows = connection.execute(SQL["assigned"], (group, member_id)).fetchall()
    return {TopicPartition(topic, partition): partition_id for topic, partition, partition_id in rows}


def commit(connection: sqlite3.Connection, group: str, offsets: Mapping[int, int], *, metadata: str) -> None:
    """Store offsets by partition id."""
    rows = [(group, partition_id, offset, metadata) for partition_id, offset in offsets.items()]
    connection.executemany(SQL["commit offset"], rows)


def committed(connection: sqlite3.Connection, group: str, partition_ids: Collection[int]) -> dict[int, Committed]:
    """The offsets that were stored last, by partition id."""
    rows = connection.execute(SQL["committed"], (group, json.dumps(list(partition_ids)))).fetchall()
    return {partition_id: Committed(offset, metadata) for partition_id, offset, metadata in rows}


def _complete(connection: sqlite3.Connection, group: str) -> None:
    present = members(connection, group)
    if not all(member.ready for member in present):
        return
    topics = {topic for member in present for topic in member.topics}
    rows = connection.execute(SQL["partitions of topics"], (json.dumps(sorted(topics)),)).fetchall()
    ids = {TopicPartition(topic, partition): partition_id for topic, partition, partition_id in rows}
    owners = assign(list(ids), {member.id: member.topics for member in present})
    connection.execute(SQL["clear assignments"], (group,))
    assignments = [(group, ids[partition], owner) for partition, owner in owners.items()]
    connection.executemany(SQL["assign"], assignments)
    connection.execute(SQL["complete rebalance"], (group,))
