"""What a log promises to those who lay out its topics."""

from __future__ import annotations

from datetime import timedelta

from microflow.conformance.transports.harness import (
    Harness,
    Scenarios,
    consuming,
    new_topic,
    numbered,
    opened,
    publish,
    read_all,
    values,
)
from microflow.ports import FOREVER, TopicLayout, TopicPartition

administration = Scenarios()


@administration.add()
async def a_topic_is_created_with_the_partitions_that_were_asked_for(harness: Harness) -> None:
    topic, missing = harness.new_name(), harness.new_name()
    async with opened(harness) as transport, opened(harness) as other:
        await transport.administration.create({topic: TopicLayout(partitions=4)})
        layouts = await other.administration.layouts([topic, missing])

        assert set(layouts) == {topic}
        assert layouts[topic].partitions == 4
        await publish(other, *numbered(topic, 2, partition=3))
        assert values(await read_all(transport, topic)) == [0, 1]


@administration.add()
async def creating_a_topic_that_exists_changes_nothing(harness: Harness) -> None:
    topic, another = await new_topic(harness), harness.new_name()
    async with opened(harness) as transport:
        before = await transport.topics.describe([topic])

        await transport.administration.create({topic: TopicLayout(partitions=9), another: TopicLayout(partitions=1)})

        assert await transport.topics.describe([topic]) == before
        assert (await transport.administration.layouts([another]))[another].partitions == 1


@administration.add()
async def a_topic_grows_and_keeps_what_it_has(harness: Harness) -> None:
    topic, partitions = await new_topic(harness), harness.abilities.partitions
    async with opened(harness) as transport, opened(harness) as other:
        await publish(transport, *numbered(topic, 3))
        before = (await other.topics.describe([topic]))[topic]

        await transport.administration.grow({topic: partitions + 2})

        for handle in (transport, other):
            after = (await handle.topics.describe([topic]))[topic]
            assert (after.partitions, after.incarnation) == (partitions + 2, before.incarnation)
        await publish(other, *numbered(topic, 2, partition=partitions + 1, first=3))
        records = await read_all(transport, topic)
        assert values(records, partition=0) == [0, 1, 2]
        assert values(records, partition=partitions + 1) == [3, 4]


@administration.add()
async def a_topic_never_shrinks(harness: Harness) -> None:
    topic, partitions = await new_topic(harness), harness.abilities.partitions
    async with opened(harness) as transport:
        await transport.administration.grow({topic: partitions})
        await transport.administration.grow({topic: partitions - 1})

        assert (await transport.administration.layouts([topic]))[topic].partitions == partitions


@administration.add()
async def a_group_is_given_the_partitions_by_which_a_topic_grows(harness: Harness) -> None:
    topic, partitions = await new_topic(harness), harness.abilities.partitions
    new = TopicPartition(topic, partitions)
    async with opened(harness) as transport, consuming(transport, [topic], group=harness.new_name()) as member:
        await member.until(lambda: len(member.partitions) == partitions)

        await transport.administration.grow({topic: partitions + 1})

        await member.until(lambda: new in member.partitions)
        await publish(transport, *numbered(topic, 1, partition=partitions))
        await member.until(lambda: values(member.records) == [0])


@administration.add(requires=["topic_settings"])
async def a_topic_keeps_its_retention_and_its_copies(harness: Harness) -> None:
    topic = harness.new_name()
    week = timedelta(days=7)
    async with opened(harness) as transport:
        await transport.administration.create(
            {topic: TopicLayout(partitions=1, replication=1, min_in_sync=1, retention=week)}
        )
        created = (await transport.administration.layouts([topic]))[topic]
        await transport.administration.alter({topic: TopicLayout(partitions=1, retention=FOREVER)})
        altered = (await transport.administration.layouts([topic]))[topic]

    assert created == TopicLayout(partitions=1, replication=1, min_in_sync=1, retention=week)
    assert altered == TopicLayout(partitions=1, replication=1, min_in_sync=1, retention=FOREVER)


@administration.add()
async def the_lag_of_a_group_is_what_it_has_not_committed(harness: Harness) -> None:
    topic, group, other_topic = await new_topic(harness), harness.new_name(), await new_topic(harness)
    async with opened(harness) as transport:
        assert group not in await transport.administration.lags(topic)
        await publish(transport, *numbered(topic, 5), *numbered(topic, 2, partition=1, first=5))
        async with consuming(transport, [topic], group=group) as member:
            await member.until(lambda: len(member.records) == 7)
            await member.subscription.commit({TopicPartition(topic, 0): 3}, metadata="")

            assert (await transport.administration.lags(topic))[group] == 4
            assert group not in await transport.administration.lags(other_topic)
            await member.subscription.commit({TopicPartition(topic, 0): 5, TopicPartition(topic, 1): 2}, metadata="")
            assert (await transport.administration.lags(topic))[group] == 0
        await publish(transport, *numbered(topic, 1, first=7))

        assert (await transport.administration.lags(topic))[group] == 1
