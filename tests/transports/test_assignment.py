"""Partitions are spread as equally as can be over those who read them."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from microflow.ports import TopicPartition
from microflow.transports.local.assignment import assign


def partitions(**counts: int) -> list[TopicPartition]:
    return [TopicPartition(topic, partition) for topic, count in counts.items() for partition in range(count)]


def test_all_topics_together_are_spread_equally() -> None:
    members = dict.fromkeys((1, 2), frozenset({"a", "b"}))

    owners = assign(partitions(a=3, b=3), members)

    assert Counter(owners.values()) == {1: 3, 2: 3}


def test_everybody_works_out_the_same() -> None:
    given_partitions = partitions(a=5, b=4)
    members = {3: frozenset({"a"}), 1: frozenset({"a", "b"}), 2: frozenset({"b"})}

    backwards = assign(given_partitions[::-1], dict(reversed(members.items())))

    assert backwards == assign(given_partitions, members)


def test_a_topic_that_one_member_reads_is_made_up_for_by_the_others() -> None:
    members = {1: frozenset({"a", "b"}), 2: frozenset({"a"})}

    owners = assign(partitions(a=4, b=2), members)

    assert Counter(owners.values()) == {1: 3, 2: 3}
    assert {owners[TopicPartition("b", each)] for each in range(2)} == {1}


def test_what_nobody_reads_is_left_out() -> None:
    assert assign(partitions(a=2), {1: frozenset({"b"})}) == {}
    assert assign(partitions(a=2), {}) == {}


@given(st.dictionaries(st.sampled_from("abcd"), st.integers(0, 8)), st.integers(1, 6))
def test_nobody_has_two_more_than_another(counts: dict[str, int], count: int) -> None:
    members = dict.fromkeys(range(count), frozenset("abcd"))

    owners = assign(partitions(**counts), members)

    loads = Counter(owners.values())
    assert set(owners) == set(partitions(**counts))
    assert max(loads[each] for each in members) - min(loads[each] for each in members) <= 1
