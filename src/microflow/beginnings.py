"""Where a partition is read from, when what the database has of it is not what the log has: never in silence.

A topic may have been deleted and created again, cut back by an unclean election, or emptied by its retention before it
was read. Whichever it was, the service goes on where nothing that is still there is passed over.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from microflow.ports import Beginning, Bounds, Ownership, Topic, TopicPartition

logger = logging.getLogger("microflow.beginnings")


@dataclass(frozen=True, slots=True)
class Verdict:
    """Where a partition is read from, what of it must be stored, and what to tell if it is not what it was. If it is
    `another` one, its records are others than those that were read at these offsets."""

    offset: int
    beginning: Beginning | None = None
    told: str = ""
    lost: int = 0
    another: bool = False


def judge(partition: TopicPartition, ownership: Ownership, topic: Topic | None, bounds: Bounds | None) -> Verdict:
    """Compare what is stored of a partition that was read before with what the log says of it now."""
    watermark, stored = ownership.watermark, ownership.incarnation
    assert watermark is not None
    if topic is None or bounds is None:
        return Verdict(watermark)  # it has gone this moment: a rebalance will tell
    name = f"{partition.topic}[{partition.partition}]"
    if stored and topic.incarnation and stored != topic.incarnation:
        return Verdict(
            bounds.beginning,
            Beginning(bounds.beginning, topic.incarnation),
            f"{name} is not the one it was: the topic was deleted and created again. The old one was read up to "
            f"{watermark:,}, and what it held beyond that is gone; the new one is read from its earliest record, "
            f"{bounds.beginning:,}, which is {bounds.end - bounds.beginning:,} records",
            another=True,
        )
    if bounds.end < watermark:
        return Verdict(
            bounds.end,
            Beginning(bounds.end, topic.incarnation),
            f"{name} was cut back: it ends at {bounds.end:,} and had been read up to {watermark:,}. The log has lost "
            f"{watermark - bounds.end:,} records that had been acknowledged; they were handled here, and perhaps not "
            f"elsewhere. Reading goes on at the end",
            lost=watermark - bounds.end,
            another=True,
        )
    if bounds.beginning > watermark:
        return Verdict(
            bounds.beginning,
            Beginning(bounds.beginning, topic.incarnation),
            f"{bounds.beginning - watermark:,} records of {name} were deleted before they were read, {watermark:,} to "
            f"{bounds.beginning - 1:,}: they are lost for this service. Its topic's retention is shorter than it was "
            f"away, or behind. Reading goes on at {bounds.beginning:,}",
            lost=bounds.beginning - watermark,
        )
    if stored is None and topic.incarnation:
        return Verdict(watermark, Beginning(watermark, topic.incarnation))
    return Verdict(watermark)


def tell(service: str, verdicts: Mapping[TopicPartition, Verdict]) -> None:
    """Say what is not as it was, one line for each partition: an error if records are lost."""
    for _, verdict in sorted(verdicts.items()):
        if verdict.told:
            logger.log(logging.ERROR if verdict.lost else logging.WARNING, "%s: %s", service, verdict.told)


def tell_of_offsets(service: str, *, forgotten: Collection[TopicPartition]) -> None:
    """Say that a group has forgotten offsets of partitions that the service has read: they are displays, no more."""
    if forgotten:
        logger.warning(
            "%s: its group has no offset of %d partitions that it has read: expired, deleted, or never told. "
            "Nothing is lost: reading goes on where the database says",
            service,
            len(forgotten),
        )
