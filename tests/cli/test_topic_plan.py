"""The plan of topics: what leads from what is there to what services need. Nothing is deleted, nothing shrinks."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

from microflow.cli.topic_plan import Need, Step, plan
from microflow.ports import FOREVER, TopicLayout
from microflow.settings import EVERY_TOPIC, Settings, TopicSettings

DAY = timedelta(days=1)


def planned(
    needs: dict[str, Need],
    existing: dict[str, TopicLayout] | None = None,
    *,
    others: tuple[str, ...] = (),
    named: dict[str, TopicSettings] | None = None,
    **general: Any,
) -> dict[str, Step]:
    """The steps by topic, for settings that say something of every topic or of some."""
    settings = Settings(
        home=Path(), kafka="local:log.db", topic=TopicSettings(**general).over(EVERY_TOPIC), topic_of=named or {}
    )
    there = existing or {}
    steps = plan(needs, there, all_topics=[*there, *others], settings=settings)
    return {step.topic: step for step in steps}


def needs(*topics: str, readers: tuple[str, ...] = ("shop",), writers: tuple[str, ...] = ("web",)) -> dict[str, Need]:
    return {topic: Need(topic, readers, writers) for topic in topics}


def test_a_topic_that_is_missing_is_created_as_the_settings_say() -> None:
    steps = planned(needs("orders"), replication=3, min_in_sync=2, retention=FOREVER)

    assert steps["orders"].action == "create"
    assert steps["orders"].after == TopicLayout(partitions=6, replication=3, min_in_sync=2, retention=FOREVER)


def test_what_is_said_of_one_topic_goes_before_what_is_said_of_all() -> None:
    steps = planned(
        needs("orders") | {"payments": Need("payments", ("bank",))},
        named={"orders": TopicSettings(partitions=12, retention=DAY)},
        partitions=3,
        retention=FOREVER,
    )

    assert steps["orders"].after == TopicLayout(partitions=12, retention=DAY)
    assert steps["payments"].after == TopicLayout(partitions=3, retention=FOREVER)


def test_a_new_topic_gets_as_many_partitions_as_those_that_its_reader_reads_beside_it() -> None:
    steps = planned(needs("orders", "payments"), {"orders": TopicLayout(partitions=12)})

    assert steps["payments"].after.partitions == 12
    assert steps["payments"].notes == ("as many partitions as orders, which shop reads too",)
    assert steps["orders"].action == "keep"


def test_partitions_of_a_topic_that_exists_change_only_if_they_are_asked_for_by_its_name() -> None:
    there = {"orders": TopicLayout(partitions=3)}

    assert planned(needs("orders"), there, partitions=12)["orders"].action == "keep"

    step = planned(needs("orders"), there, named={"orders": TopicSettings(partitions=12)})["orders"]
    assert (step.action, step.grows, step.after.partitions) == ("change", True, 12)
    assert step.drastic == ("3 → 12 partitions can never be taken back",)


def test_a_topic_never_shrinks() -> None:
    step = planned(
        needs("orders"), {"orders": TopicLayout(partitions=12)}, named={"orders": TopicSettings(partitions=6)}
    )

    assert (step["orders"].action, step["orders"].after.partitions) == ("refuse", 12)
    assert step["orders"].refused == ("it has 12 partitions, and a topic never shrinks to 6",)


def test_a_retention_that_is_shorter_must_be_confirmed_and_a_longer_one_not() -> None:
    there = {"orders": TopicLayout(partitions=6, replication=1, min_in_sync=1, retention=7 * DAY)}

    shorter = planned(needs("orders"), there, retention=DAY)["orders"]
    longer = planned(needs("orders"), there, retention=FOREVER)["orders"]

    assert (shorter.action, shorter.drastic) == ("change", ("a shorter retention deletes what is older",))
    assert (longer.action, longer.drastic) == ("change", ())


def test_fewer_copies_in_sync_must_be_confirmed_and_copies_cannot_be_made() -> None:
    there = {"orders": TopicLayout(partitions=6, replication=1, min_in_sync=2, retention=DAY)}

    step = planned(needs("orders"), there, replication=3, min_in_sync=1)["orders"]

    assert step.drastic == ("with 1 copy in sync less is safe than with 2",)
    assert step.refused == ("it has 1 copy, and 3 are made by kafka-reassign-partitions only",)


def test_what_a_log_does_not_have_is_not_asked_of_it() -> None:
    step = planned(needs("orders"), {"orders": TopicLayout(partitions=6)}, replication=3, retention=DAY)["orders"]

    assert step.action == "keep"


def test_a_name_that_kafka_cannot_tell_from_another_is_refused() -> None:
    step = planned(needs("orders.placed"), others=("orders_placed",))["orders.placed"]

    assert step.action == "refuse"
    assert step.refused == ("it and orders_placed are one name to Kafka's metrics, which cannot tell '.' from '_'",)


def test_a_topic_that_nobody_writes_is_told_with_the_one_that_was_meant() -> None:
    step = planned({"ordres": Need("ordres", ("shop",))}, others=("orders",))["ordres"]

    assert step.notes == ("nobody here writes it; did you mean orders?",)


def test_nobody_meant_another_topic_that_is_named_alike_or_that_a_service_of_the_plan_needs() -> None:
    steps = planned(
        {"OrderPlaced": Need("OrderPlaced", ("shop",)), **needs("OrdersPlaced")},
        {"OrdersPlaced": TopicLayout(partitions=6)},
        others=("OrderAccepted",),
    )

    assert steps["OrderPlaced"].notes == ()


def test_topics_of_one_reader_that_have_different_counts_are_noted() -> None:
    there = {"orders": TopicLayout(partitions=6), "payments": TopicLayout(partitions=3)}

    steps = planned(needs("orders", "payments"), there)

    assert steps["orders"].notes == ()
    assert steps["payments"].notes == (
        "shop reads orders too, which has 6 partitions: one key's events may go to different processes",
    )
