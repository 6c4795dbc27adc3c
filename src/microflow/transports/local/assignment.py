"""Who gets which partitions: as equal as can be over all topics together, the same for everybody who works it out."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

from microflow.ports import TopicPartition


def assign(partitions: Sequence[TopicPartition], members: Mapping[int, frozenset[str]]) -> Mapping[TopicPartition, int]:
    """The member of each partition, by what topics each member reads; partitions that nobody reads are left out.

    Topics that few members read are given away first, so that the others can make up for it.
    """
    readers: dict[str, list[int]] = defaultdict(list)
    for member in sorted(members):
        for topic in members[member]:
            readers[topic].append(member)
    load = dict.fromkeys(members, 0)
    owners: dict[TopicPartition, int] = {}
    for partition in sorted(partitions, key=lambda each: (len(readers[each.topic]), each)):
        if candidates := readers[partition.topic]:
            owner = min(candidates, key=lambda member: (load[member], member))
            owners[partition] = owner
            load[owner] += 1
    return owners
