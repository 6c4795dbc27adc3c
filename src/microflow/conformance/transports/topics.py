"""What a log promises to know about itself: its identity, its topics, where they begin and end."""

from __future__ import annotations

from datetime import timedelta

from microflow.conformance.transports.harness import (
    Harness,
    Scenarios,
    new_topic,
    numbered,
    opened,
    publish,
    read_all,
    values,
)
from microflow.errors import TransportError
from microflow.ports import Record, TopicPartition

topics = Scenarios()


@topics.add()
async def every_handle_sees_the_same_log(harness: Harness) -> None:
    topic = await new_topic(harness)
    async with opened(harness) as one, opened(harness) as other:
        assert await one.topics.cluster_id() == await other.topics.cluster_id() != ""
        assert await one.topics.describe([topic]) == await other.topics.describe([topic])


@topics.add(requires=["persistent"])
async def a_log_keeps_its_identity(harness: Harness) -> None:
    topic = await new_topic(harness)
    async with opened(harness) as transport:
        before = await transport.topics.cluster_id(), await transport.topics.describe([topic])

    async with opened(harness) as transport:
        assert (await transport.topics.cluster_id(), await transport.topics.describe([topic])) == before


@topics.add()
async def only_topics_that_exist_are_described(harness: Harness) -> None:
    one, other, missing = await new_topic(harness), await new_topic(harness), harness.new_name()
    async with opened(harness) as transport:
        described = await transport.topics.describe([one, missing])
        everything = await transport.topics.describe()
        nothing = await transport.topics.describe([])

    assert set(described) == {one}
    assert (described[one].name, described[one].partitions) == (one, harness.abilities.partitions)
    assert described[one].incarnation != ""
    assert {one, other} <= set(everything)
    assert missing not in everything
    assert nothing == {}


@topics.add()
async def ensuring_a_topic_that_exists_changes_nothing(harness: Harness) -> None:
    topic = await new_topic(harness)
    async with opened(harness) as transport:
        before = await transport.topics.describe([topic])

        assert await transport.topics.ensure([topic]) == frozenset()

        assert await transport.topics.describe([topic]) == before
        assert await transport.topics.ensure([]) == frozenset()


@topics.add()
async def ensuring_tells_what_is_still_missing(harness: Harness) -> None:
    topic, missing = await new_topic(harness), harness.new_name()
    async with opened(harness) as transport:
        expected = frozenset() if harness.abilities.creates_topics else {missing}

        assert await transport.topics.ensure([topic, missing]) == expected

        assert set(await transport.topics.describe([topic, missing])) == {topic, missing} - expected


@topics.add(requires=["creates_topics"])
async def publishing_to_a_topic_creates_it_for_everybody(harness: Harness) -> None:
    topic = harness.new_name()
    async with opened(harness) as one, opened(harness) as other:
        await publish(one, *numbered(topic, 1))

        assert set(await other.topics.describe([topic])) == {topic}
        await publish(other, *numbered(topic, 1, first=1))
        assert values(await read_all(one, topic)) == [0, 1]


@topics.add()
async def a_name_that_no_topic_may_have_is_refused(harness: Harness) -> None:
    async with opened(harness) as transport:
        for name in ("", ".", "..", "a topic", "größe", "a" * 250):
            (error,) = await transport.publish([Record(name, 0, None, b"value")])
            assert isinstance(error, TransportError), name
            assert await transport.topics.ensure([name]) == {name}, name


@topics.add()
async def bounds_are_where_a_partition_begins_and_ends(harness: Harness) -> None:
    topic, missing = await new_topic(harness), harness.new_name()
    zero, one = TopicPartition(topic, 0), TopicPartition(topic, 1)
    async with opened(harness) as transport, opened(harness) as other:
        before = await transport.topics.bounds([zero, one])
        await publish(other, *numbered(topic, 3))
        after = await transport.topics.bounds(
            [zero, one, TopicPartition(missing, 0), TopicPartition(topic, harness.abilities.partitions)]
        )
        records = await read_all(transport, topic)

    assert set(before) == {zero, one}
    assert before[zero].beginning == before[zero].end
    assert set(after) == {zero, one}, after
    assert after[zero].beginning == records[0].offset
    assert after[zero].end == records[-1].offset + 1
    assert after[one] == before[one]


@topics.add()
async def the_offset_at_an_instant_is_that_of_the_first_record_not_older(harness: Harness) -> None:
    topic = await new_topic(harness)
    zero, one = TopicPartition(topic, 0), TopicPartition(topic, 1)
    async with opened(harness) as transport:
        for number in range(5):
            await publish(transport, *numbered(topic, 1, first=number))
            await harness.clock.sleep(harness.abilities.moment / 10)
        records = await read_all(transport, topic)
        end = (await transport.topics.bounds([zero]))[zero].end

        for record in records:
            assert record.timestamp is not None
            at = await transport.topics.offsets_at([zero], record.timestamp)
            assert at == {zero: record.offset}, (at, record)
        first, last = records[0].timestamp, records[-1].timestamp
        assert first is not None
        assert last is not None
        long_before = await transport.topics.offsets_at([zero, one], first - timedelta(days=1))
        afterwards = await transport.topics.offsets_at([zero, one], last + timedelta(days=1))
        between = await transport.topics.offsets_at([zero], last - timedelta(milliseconds=1))
    assert long_before[zero] == records[0].offset
    assert afterwards[zero] == end
    assert long_before[one] == afterwards[one]
    assert between[zero] == records[-1].offset


@topics.add()
async def partitions_that_do_not_exist_have_no_offsets(harness: Harness) -> None:
    topic, missing = await new_topic(harness), harness.new_name()
    nowhere = [TopicPartition(missing, 0), TopicPartition(topic, harness.abilities.partitions)]
    async with opened(harness) as transport:
        assert await transport.topics.bounds(nowhere) == {}
        assert await transport.topics.offsets_at(nowhere, harness.clock.now()) == {}
