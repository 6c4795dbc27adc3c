"""What a log promises to those who read: every record once and in order, from where they sought."""

from __future__ import annotations

import asyncio
import contextlib

from microflow.conformance.transports.harness import (
    LONG,
    Harness,
    Scenarios,
    fetching,
    member_of,
    new_topic,
    numbered,
    opened,
    partitions_of,
    publish,
    refuses,
    values,
)
from microflow.ports import TopicPartition

reading = Scenarios()


@reading.add()
async def a_reader_outside_groups_gets_every_partition(harness: Harness) -> None:
    topics = [await new_topic(harness), await new_topic(harness)]
    async with opened(harness) as transport, member_of(transport, topics, group=None) as reader:
        await reader.settle()

    assert reader.partitions == partitions_of(harness, *topics)


@reading.add()
async def readers_do_not_disturb_each_other(harness: Harness) -> None:
    topic = await new_topic(harness)
    async with (
        opened(harness) as transport,
        member_of(transport, [topic], group=None) as one,
        member_of(transport, [topic], group=None) as other,
    ):
        await publish(transport, *numbered(topic, 3))

        assert values(await one.settle()) == [0, 1, 2]
        assert values(await other.settle()) == [0, 1, 2]


@reading.add()
async def reading_starts_where_the_listener_seeks(harness: Harness) -> None:
    topic = await new_topic(harness)
    async with opened(harness) as transport, member_of(transport, [topic], group=None) as reader:
        await publish(transport, *numbered(topic, 5), *numbered(topic, 5, partition=1))
        reader.starts = {TopicPartition(topic, 0): 3}

        await reader.settle()

    assert values(reader.records, partition=0) == [3, 4], reader.records
    assert values(reader.records, partition=1) == [0, 1, 2, 3, 4], reader.records


@reading.add()
async def seeking_back_reads_again(harness: Harness) -> None:
    topic = await new_topic(harness)
    async with opened(harness) as transport, member_of(transport, [topic], group=None) as reader:
        await publish(transport, *numbered(topic, 5))
        await reader.collect(5)

        reader.subscription.seek(TopicPartition(topic, 0), 2)

        assert values(await reader.settle()) == [2, 3, 4]


@reading.add()
async def seeking_forward_skips(harness: Harness) -> None:
    topic = await new_topic(harness)
    async with opened(harness) as transport, member_of(transport, [topic], group=None) as reader:
        await publish(transport, *numbered(topic, 10))
        assert values(await reader.collect(2, max_records=2)) == [0, 1]

        reader.subscription.seek(TopicPartition(topic, 0), 8)

        assert values(await reader.settle()) == [8, 9]


@reading.add()
async def a_partition_that_was_not_sought_is_not_read(harness: Harness) -> None:
    topic = await new_topic(harness)
    async with opened(harness) as transport, member_of(transport, [topic], group=None) as reader:
        await publish(transport, *numbered(topic, 2), *numbered(topic, 2, partition=1))
        reader.starts = None
        assert await reader.settle() == []

        reader.subscription.seek(TopicPartition(topic, 1), 0)

        assert {record.partition for record in await reader.collect(2)} == {1}
        assert await reader.settle() == []


@reading.add()
async def nothing_is_read_before_the_listener_has_returned(harness: Harness) -> None:
    topic = await new_topic(harness)
    returned = asyncio.Event()
    async with opened(harness) as transport, member_of(transport, [topic], group=None) as reader:
        await publish(transport, *numbered(topic, 2))

        async def seek_and_wait() -> None:
            reader.subscription.seek(TopicPartition(topic, 0), 0)
            await returned.wait()

        reader.before_assigned = seek_and_wait
        async with fetching(reader):
            await harness.clock.sleep(harness.abilities.moment)
            assert reader.records == []

            returned.set()

            await reader.until(lambda: values(reader.records) == [0, 1])


@reading.add()
async def fetching_without_records_returns_when_the_wait_is_over(harness: Harness) -> None:
    topic = await new_topic(harness)
    async with opened(harness) as transport, member_of(transport, [topic], group=None) as reader:
        await reader.settle()
        before = harness.clock.monotonic()

        assert await reader.fetch(wait=harness.abilities.moment) == []

        waited = harness.clock.monotonic() - before
        assert harness.abilities.moment * 0.5 < waited < LONG / 2, waited


@reading.add()
async def a_waiting_fetch_returns_as_soon_as_there_is_a_record(harness: Harness) -> None:
    topic = await new_topic(harness)
    async with opened(harness) as one, opened(harness) as other, member_of(one, [topic], group=None) as reader:
        await reader.settle()
        before = harness.clock.monotonic()
        waiting = asyncio.ensure_future(reader.fetch(wait=LONG))
        await harness.clock.sleep(harness.abilities.moment)

        await publish(other, *numbered(topic, 1))

        assert values(await waiting) == [0]
        assert harness.clock.monotonic() - before < LONG / 2


@reading.add()
async def small_batches_add_up_to_everything(harness: Harness) -> None:
    topic = await new_topic(harness)
    async with opened(harness) as transport, member_of(transport, [topic], group=None) as reader:
        await publish(transport, *numbered(topic, 50), *numbered(topic, 7, partition=1))
        while len(reader.records) < 57:
            assert len(await reader.fetch(max_records=4)) <= 4

    assert values(reader.records, partition=0) == list(range(50))
    assert values(reader.records, partition=1) == list(range(7))


@reading.add()
async def a_cancelled_fetch_loses_nothing(harness: Harness) -> None:
    topic = await new_topic(harness)
    async with opened(harness) as transport, member_of(transport, [topic], group=None) as reader:
        await reader.settle()
        for number in range(10):
            waiting = asyncio.ensure_future(reader.fetch())
            await harness.clock.sleep(harness.abilities.moment / 60)
            publishing = asyncio.ensure_future(publish(transport, *numbered(topic, 1, first=number)))
            await harness.clock.sleep(harness.abilities.moment / 600 * number)
            waiting.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await waiting
            await publishing
        await reader.settle()

    assert values(reader.records) == list(range(10)), reader.records


@reading.add()
async def a_paused_partition_waits_while_the_others_go_on(harness: Harness) -> None:
    topic = await new_topic(harness)
    paused = [TopicPartition(topic, 0)]
    async with opened(harness) as transport, member_of(transport, [topic], group=None) as reader:
        await publish(transport, *numbered(topic, 2), *numbered(topic, 2, partition=1))
        await reader.settle()

        reader.subscription.pause(paused)
        await publish(transport, *numbered(topic, 2, first=2), *numbered(topic, 2, partition=1, first=2))
        while_paused = await reader.settle()
        reader.subscription.resume(paused)
        afterwards = await reader.settle()

    assert [(each.partition, each.value) for each in while_paused] == [(1, b"2"), (1, b"3")], while_paused
    assert [(each.partition, each.value) for each in afterwards] == [(0, b"2"), (0, b"3")], afterwards


@reading.add()
async def resuming_wakes_a_waiting_fetch(harness: Harness) -> None:
    topic = await new_topic(harness)
    async with opened(harness) as transport, member_of(transport, [topic], group=None) as reader:
        await reader.settle()
        reader.subscription.pause(reader.partitions)
        await publish(transport, *numbered(topic, 1))
        before = harness.clock.monotonic()
        waiting = asyncio.ensure_future(reader.fetch(wait=LONG))
        await harness.clock.sleep(harness.abilities.moment)
        assert not waiting.done()

        reader.subscription.resume(reader.partitions)

        assert values(await waiting) == [0]
        assert harness.clock.monotonic() - before < LONG / 2


@reading.add()
async def closing_ends_a_waiting_fetch_and_calls_no_listener(harness: Harness) -> None:
    topic = await new_topic(harness)
    async with opened(harness) as transport, member_of(transport, [topic], group=harness.new_name()) as member:
        await member.settle()
        told = list(member.told)
        before = harness.clock.monotonic()
        waiting = asyncio.ensure_future(member.fetch(wait=LONG))
        await harness.clock.sleep(harness.abilities.moment)

        await member.subscription.close()

        assert await waiting == []
        assert harness.clock.monotonic() - before < LONG / 2
        assert member.told == told


@reading.add()
async def closing_twice_is_harmless(harness: Harness) -> None:
    topic = await new_topic(harness)
    async with opened(harness) as transport, member_of(transport, [topic], group=harness.new_name()) as member:
        await member.settle()
        await member.subscription.close()
        await member.subscription.close()


@reading.add()
async def a_reader_that_is_not_in_a_group_has_nothing_to_commit(harness: Harness) -> None:
    topic = await new_topic(harness)
    async with opened(harness) as transport, member_of(transport, [topic], group=None) as reader:
        await reader.settle()

        await refuses(reader.subscription.commit({TopicPartition(topic, 0): 1}, metadata=""))


@reading.add()
async def a_topic_that_appears_later_is_read_too(harness: Harness) -> None:
    early, late = await new_topic(harness), harness.new_name()
    async with opened(harness) as transport, member_of(transport, [early, late], group=None) as reader:
        await publish(transport, *numbered(early, 1))
        await reader.settle()
        reader.starts = {TopicPartition(early, 0): 1}
        async with fetching(reader):
            await harness.create_topic(late)
            await publish(transport, *numbered(late, 1))

            await reader.until(lambda: any(record.topic == late for record in reader.records))

    assert {partition.topic for partition in reader.partitions} == {early, late}
    assert reader.told[-1] == ("assigned", reader.partitions)


@reading.add(requires=["retention"])
async def what_is_older_than_the_retention_goes_and_reading_begins_behind_it(harness: Harness) -> None:
    topic = await new_topic(harness)
    partition = TopicPartition(topic, 0)
    async with opened(harness) as transport:
        await publish(transport, *numbered(topic, 5))
        end = (await transport.topics.bounds([partition]))[partition].end

        await harness.expire(transport)
        await publish(transport, *numbered(topic, 2, first=5))

        bounds = (await transport.topics.bounds([partition]))[partition]
        async with member_of(transport, [topic], group=None) as reader:
            records = await reader.settle()
    assert bounds.beginning == end, bounds
    assert values(records) == [5, 6], records
    assert records[0].offset >= end
