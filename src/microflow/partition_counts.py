"""Partition counts: how many partitions of a topic are used, which is not how many it has.

A key is in order because all its events are in one partition. More partitions would move keys away from what is still
unread of them, so those who write a topic go on using as many as they began with, until `microflow topics switch`.
"""

from __future__ import annotations

from microflow.errors import IdentityError


def check_partitions(topic: str, *, found: int, used: int) -> None:
    """Raise IdentityError if a topic has fewer partitions than those who write it use."""
    if found < used:
        raise IdentityError(
            f"The topic {topic} has {found} partition{'s' if found > 1 else ''}, and {used} of it are used.",
            why="A topic never loses partitions, so it was made anew, or this is another log.",
            fix=f"If the topic was made anew:  microflow topics switch {topic}",
        )


def is_told(topic: str, *, found: int, used: int) -> str:
    """What to say of a topic that has more partitions than are used."""
    return (
        f"the topic {topic} has {found} partitions, and {used} of them are used, so that keys keep their order; "
        f"for all of them, when everything is read:  microflow topics switch {topic}"
    )
