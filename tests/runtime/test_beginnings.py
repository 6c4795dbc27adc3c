"""What a partition is compared with when it is assigned: nothing is passed over in silence (semantics 9, 13)."""

from __future__ import annotations

import logging

import pytest

from microflow.beginnings import Verdict, judge, tell, tell_of_offsets
from microflow.ports import Beginning, Bounds, Ownership, Topic, TopicPartition

ZERO = TopicPartition("orders", 0)
TOPIC = Topic("orders", 3, "first")


def judged(
    watermark: int, bounds: Bounds | None, *, stored: str | None = "first", topic: Topic | None = TOPIC
) -> Verdict:
    return judge(ZERO, Ownership(1, watermark, incarnation=stored), topic, bounds)


@pytest.mark.parametrize("watermark", [10, 15, 20])
def test_a_partition_that_is_what_it_was_is_read_from_the_watermark(watermark: int) -> None:
    assert judged(watermark, Bounds(10, 20)) == Verdict(watermark)


def test_a_topic_that_was_created_anew_is_read_from_its_earliest_record_even_if_the_offsets_fit() -> None:
    verdict = judged(15, Bounds(2, 20), stored="another")

    assert (verdict.offset, verdict.beginning) == (2, Beginning(2, "first"))
    assert "deleted and created again" in verdict.told
    assert "up to 15" in verdict.told
    assert "18 records" in verdict.told


def test_a_topic_that_was_cut_back_is_read_from_its_end() -> None:
    verdict = judged(1_500, Bounds(0, 1_200))

    assert (verdict.offset, verdict.beginning, verdict.lost) == (1_200, Beginning(1_200, "first"), 300)
    assert "ends at 1,200 and had been read up to 1,500" in verdict.told
    assert "300 records" in verdict.told


def test_records_that_went_before_they_were_read_are_counted() -> None:
    verdict = judged(100, Bounds(1_350, 2_000))

    assert (verdict.offset, verdict.beginning, verdict.lost) == (1_350, Beginning(1_350, "first"), 1_250)
    assert verdict.told.startswith("1,250 records of orders[0] were deleted before they were read, 100 to 1,349")


def test_a_partition_from_before_incarnations_were_stored_learns_its_own_in_silence() -> None:
    assert judged(15, Bounds(0, 20), stored=None) == Verdict(15, Beginning(15, "first"))


def test_a_log_that_knows_no_incarnations_makes_nobody_begin_anew() -> None:
    assert judged(15, Bounds(0, 20), topic=Topic("orders", 3, "")) == Verdict(15)
    assert judged(15, Bounds(0, 20), stored=None, topic=Topic("orders", 3, "")) == Verdict(15)


def test_a_topic_that_goes_this_moment_is_left_to_the_next_rebalance() -> None:
    assert judged(15, None) == Verdict(15)
    assert judged(15, Bounds(0, 20), topic=None) == Verdict(15)


def test_losses_are_errors_and_what_is_as_it_was_is_not_told(caplog: pytest.LogCaptureFixture) -> None:
    verdicts = {
        ZERO: judged(100, Bounds(150, 200)),
        TopicPartition("orders", 1): judged(15, Bounds(0, 20), stored="another"),
        TopicPartition("orders", 2): judged(15, Bounds(0, 20)),
    }

    with caplog.at_level(logging.INFO, logger="microflow"):
        tell("payments", verdicts)
        tell_of_offsets("payments", forgotten=[])
        tell_of_offsets("payments", forgotten=[ZERO, TopicPartition("orders", 1)])

    assert [record.levelname for record in caplog.records] == ["ERROR", "WARNING", "WARNING"]
    assert all(record.getMessage().startswith("payments: ") for record in caplog.records)
    assert "no offset of 2 partitions" in caplog.records[2].getMessage()
