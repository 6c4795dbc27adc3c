"""What a log promises to the members of a consumer group: one owner for each partition, told in the right order."""

from __future__ import annotations

import asyncio
import contextlib

from microflow.conformance.transports.harness import (
    LONG,
    Harness,
    Ownership,
    Scenarios,
    consuming,
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
from microflow.ports import Committed, TopicPartition

groups = Scenarios()


@groups.add()
async def a_lone_member_gets_every_partition_of_every_topic(harness: Harness) -> None:
    topics = [await new_topic(harness), await new_topic(harness)]
    async with opened(harness) as transport, member_of(transport, topics, group=harness.new_name()) as member:
        await publish(transport, *numbered(topics[0], 3), *numbered(topics[1], 3, first=3))
        await member.settle()

    assert member.told == [("assigned", partitions_of(harness, *topics))], member.told
    assert sorted(values(member.records)) == [0, 1, 2, 3, 4, 5]


@groups.add()
async def a_member_whose_topics_do_not_exist_is_assigned_nothing(harness: Harness) -> None:
    async with (
        opened(harness) as transport,
        member_of(transport, [harness.new_name()], group=harness.new_name()) as member,
    ):
        await member.settle()

    assert member.told == [("assigned", frozenset())], member.told


@groups.add()
async def two_members_share_the_partitions(harness: Harness) -> None:
    topic, group, ownership = await new_topic(harness), harness.new_name(), Ownership()
    everything = partitions_of(harness, topic)
    async with (
        opened(harness) as one,
        opened(harness) as other,
        consuming(one, [topic], group=group, ownership=ownership) as first,
        consuming(other, [topic], group=group, ownership=ownership) as second,
    ):
        await second.until(lambda: 0 < len(second.partitions) < len(everything))
        await first.until(lambda: 0 < len(first.partitions) < len(everything))

        assert not first.partitions & second.partitions
        assert first.partitions | second.partitions == everything

        await publish(one, *(each for part in everything for each in numbered(topic, 2, partition=part.partition)))
        await first.until(lambda: len(first.records) == 2 * len(first.partitions))
        await second.until(lambda: len(second.records) == 2 * len(second.partitions))
        for member in (first, second):
            assert {record.source for record in member.records} == member.partitions


@groups.add()
async def nobody_gets_a_partition_before_its_owner_has_given_it_up(harness: Harness) -> None:
    topic, group, ownership = await new_topic(harness), harness.new_name(), Ownership()
    revoking, go_on = asyncio.Event(), asyncio.Event()
    async with (
        opened(harness) as one,
        opened(harness) as other,
        consuming(one, [topic], group=group, ownership=ownership) as owner,
    ):
        await owner.until(lambda: bool(owner.partitions))

        async def give_up_slowly() -> None:
            revoking.set()
            await go_on.wait()

        owner.before_revoked = give_up_slowly
        async with consuming(other, [topic], group=group, ownership=ownership) as newcomer:
            await revoking.wait()
            await harness.clock.sleep(3 * harness.abilities.moment)
            assert newcomer.told == [], newcomer.told

            go_on.set()
            await newcomer.until(lambda: bool(newcomer.partitions))

    assert [what for what, _ in owner.told[:3]] == ["assigned", "revoked", "assigned"], owner.told
    assert owner.told[0][1] == owner.told[1][1], "all that the member has is revoked"


@groups.add()
async def whoever_leaves_hands_over_at_once(harness: Harness) -> None:
    topic, group, ownership = await new_topic(harness), harness.new_name(), Ownership()
    everything = partitions_of(harness, topic)
    async with (
        opened(harness) as one,
        opened(harness) as other,
        consuming(one, [topic], group=group, ownership=ownership) as stays,
    ):
        await stays.until(lambda: stays.partitions == everything)
        async with consuming(other, [topic], group=group, ownership=ownership) as leaves:
            await leaves.until(lambda: bool(leaves.partitions))
            await stays.until(lambda: 0 < len(stays.partitions) < len(everything))

        before = harness.clock.monotonic()
        await stays.until(lambda: stays.partitions == everything)
        assert harness.clock.monotonic() - before < LONG / 4
        await publish(one, *numbered(topic, 1, partition=2))
        await stays.until(lambda: values(stays.records) == [0])


@groups.add()
async def a_member_that_holds_nothing_takes_over_when_another_one_leaves(harness: Harness) -> None:
    topic, group, ownership = await new_topic(harness), harness.new_name(), Ownership()
    count = harness.abilities.partitions
    async with opened(harness) as transport, contextlib.AsyncExitStack() as stack:
        members = [
            await stack.enter_async_context(consuming(transport, [topic], group=group, ownership=ownership))
            for _ in range(count)
        ]
        for member in members:
            await member.until(lambda member=member: len(member.partitions) == 1)  # type: ignore[misc]  # bound now
        async with consuming(transport, [topic], group=group, ownership=ownership) as last:
            await last.until(lambda: bool(last.told))
            everybody = [*members, last]
            while sorted(len(each.partitions) for each in everybody) != [0] + [1] * count:
                await harness.clock.sleep(harness.abilities.moment)
            assert len({partition for each in everybody for partition in each.partitions}) == count
            idle = next(each for each in everybody if not each.partitions)
            assert idle.told[-1] == ("assigned", frozenset())
            busy = next(each for each in members if each.partitions)

            await busy.leave()

            await idle.until(lambda: len(idle.partitions) == 1)


@groups.add()
async def a_partition_never_has_two_owners_however_members_come_and_go(harness: Harness) -> None:
    topic, group, ownership = await new_topic(harness), harness.new_name(), Ownership()
    everything = partitions_of(harness, topic)
    async with (
        opened(harness) as one,
        opened(harness) as other,
        consuming(one, [topic], group=group, ownership=ownership) as steady,
    ):
        for round_ in range(3):
            async with (
                consuming(other, [topic], group=group, ownership=ownership) as second,
                consuming(one, [topic], group=group, ownership=ownership) as third,
            ):
                await publish(other, *numbered(topic, 5, first=5 * round_))
                if round_ % 2 == 0:
                    await second.until(lambda: bool(second.told))
                await third.until(lambda: bool(third.told))
        await steady.until(lambda: steady.partitions == everything)

    pairs = zip(steady.told, steady.told[1:], strict=False)
    assert all(before[0] != after[0] for before, after in pairs), "assigned and revoked take turns"


@groups.add()
async def after_a_rebalance_reading_starts_where_the_listener_seeks(harness: Harness) -> None:
    topic, group = await new_topic(harness), harness.new_name()
    async with opened(harness) as one, opened(harness) as other, member_of(one, [topic], group=group) as member:
        await publish(one, *numbered(topic, 4))
        await member.collect(4)
        member.starts = {TopicPartition(topic, 0): 2}
        async with fetching(member):
            async with consuming(other, [topic], group=group) as newcomer:
                await newcomer.until(lambda: bool(newcomer.told))
                newcomer.vanish()
            await member.until(lambda: len(member.partitions) == harness.abilities.partitions)
            await member.until(lambda: values(member.records)[-2:] == [2, 3] and len(member.records) >= 6)

    assert values(member.records)[:4] == [0, 1, 2, 3]


@groups.add()
async def a_rebalance_forgets_what_was_paused(harness: Harness) -> None:
    topic, group = await new_topic(harness), harness.new_name()
    async with opened(harness) as one, opened(harness) as other, member_of(one, [topic], group=group) as member:
        await member.settle()
        member.subscription.pause(member.partitions)
        await publish(one, *numbered(topic, 1))
        async with fetching(member):
            async with consuming(other, [topic], group=group) as newcomer:
                await newcomer.until(lambda: bool(newcomer.told))
            await member.until(lambda: len(member.partitions) == harness.abilities.partitions)

            await member.until(lambda: 0 in values(member.records))


@groups.add()
async def a_member_with_everything_paused_still_takes_part(harness: Harness) -> None:
    topic, group, ownership = await new_topic(harness), harness.new_name(), Ownership()
    async with (
        opened(harness) as one,
        opened(harness) as other,
        consuming(one, [topic], group=group, ownership=ownership) as member,
    ):
        await member.until(lambda: bool(member.partitions))
        member.subscription.pause(member.partitions)

        async with consuming(other, [topic], group=group, ownership=ownership) as newcomer:
            await newcomer.until(lambda: bool(newcomer.partitions))


@groups.add()
async def every_group_gets_every_record_and_so_does_a_reader(harness: Harness) -> None:
    topic = await new_topic(harness)
    async with (
        opened(harness) as transport,
        member_of(transport, [topic], group=harness.new_name()) as one,
        member_of(transport, [topic], group=harness.new_name()) as other,
        member_of(transport, [topic], group=None) as reader,
    ):
        await publish(transport, *numbered(topic, 3))
        for member in (one, other, reader):
            assert values(await member.collect(3)) == [0, 1, 2]
            assert len(member.partitions) == harness.abilities.partitions


@groups.add()
async def a_topic_that_appears_later_is_shared_too(harness: Harness) -> None:
    early, late, group = await new_topic(harness), harness.new_name(), harness.new_name()
    ownership = Ownership()
    async with (
        opened(harness) as one,
        opened(harness) as other,
        consuming(one, [early, late], group=group, ownership=ownership) as first,
        consuming(other, [early, late], group=group, ownership=ownership) as second,
    ):
        await second.until(lambda: 0 < len(second.partitions) < harness.abilities.partitions)
        await first.until(lambda: 0 < len(first.partitions) < harness.abilities.partitions)

        await harness.create_topic(late)

        for member in (first, second):
            await member.until(lambda member=member: late in {each.topic for each in member.partitions})  # type: ignore[misc]  # bound now
        assert len(first.partitions | second.partitions) == 2 * harness.abilities.partitions


@groups.add()
async def a_topic_that_only_some_members_read_goes_to_those(harness: Harness) -> None:
    both, only, group = await new_topic(harness), await new_topic(harness), harness.new_name()
    async with (
        opened(harness) as one,
        opened(harness) as other,
        consuming(one, [both], group=group) as first,
        consuming(other, [both, only], group=group) as second,
    ):
        await second.until(lambda: partitions_of(harness, only) <= second.partitions)
        await first.until(lambda: bool(first.told))
        assert {partition.topic for partition in first.partitions} <= {both}


@groups.add()
async def what_was_committed_is_told_to_the_whole_group_and_to_nobody_else(harness: Harness) -> None:
    topic, group = await new_topic(harness), harness.new_name()
    zero, one, two = (TopicPartition(topic, each) for each in range(3))
    async with opened(harness) as transport, opened(harness) as other:
        async with member_of(transport, [topic], group=group) as member:
            await member.settle()
            assert await member.subscription.committed([zero, one]) == {}

            await member.subscription.commit({zero: 5, one: 1}, metadata="first")
            await member.subscription.commit({one: 7}, metadata="größer ✓")

            expected = {zero: Committed(5, "first"), one: Committed(7, "größer ✓")}
            assert await member.subscription.committed([zero, one, two]) == expected
        async with member_of(other, [topic], group=group) as successor:
            assert await successor.subscription.committed([zero, one, two]) == expected
        async with member_of(other, [topic], group=harness.new_name()) as stranger:
            assert await stranger.subscription.committed([zero, one, two]) == {}


@groups.add(requires=["persistent"])
async def what_was_committed_outlives_everybody(harness: Harness) -> None:
    topic, group = await new_topic(harness), harness.new_name()
    partition = TopicPartition(topic, 0)
    async with opened(harness) as transport, member_of(transport, [topic], group=group) as member:
        await member.settle()
        await member.subscription.commit({partition: 3}, metadata="note")

    async with opened(harness) as transport, member_of(transport, [topic], group=group) as member:
        assert await member.subscription.committed([partition]) == {partition: Committed(3, "note")}


@groups.add()
async def an_offset_of_a_partition_that_was_given_up_is_refused(harness: Harness) -> None:
    topic, group, ownership = await new_topic(harness), harness.new_name(), Ownership()
    async with (
        opened(harness) as one,
        opened(harness) as other,
        consuming(one, [topic], group=group, ownership=ownership) as member,
    ):
        await member.until(lambda: len(member.partitions) == harness.abilities.partitions)
        async with consuming(other, [topic], group=group, ownership=ownership) as newcomer:
            await newcomer.until(lambda: 0 < len(newcomer.partitions) < harness.abilities.partitions)
            await member.until(lambda: 0 < len(member.partitions) < harness.abilities.partitions)
            lost = sorted(newcomer.partitions)[0]
            await newcomer.subscription.commit({lost: 9}, metadata="new")

            await refuses(member.subscription.commit({lost: 1}, metadata="old"))

            assert await member.subscription.committed([lost]) == {lost: Committed(9, "new")}


@groups.add()
async def an_offset_that_comes_after_closing_is_refused(harness: Harness) -> None:
    topic = await new_topic(harness)
    partition = TopicPartition(topic, 0)
    async with opened(harness) as transport, member_of(transport, [topic], group=harness.new_name()) as member:
        await member.settle()
        await member.subscription.close()

        await refuses(member.subscription.commit({partition: 1}, metadata=""))


@groups.add(requires=["session_expiry"])
async def a_silent_member_loses_its_partitions_and_its_offsets_are_refused(harness: Harness) -> None:
    topic, group = await new_topic(harness), harness.new_name()
    partition = TopicPartition(topic, 0)
    awake = asyncio.Event()
    async with opened(harness) as one, opened(harness) as other, member_of(one, [topic], group=group) as zombie:
        await zombie.settle()
        zombie.before_revoked = awake.wait
        async with consuming(other, [topic], group=group) as successor:
            await harness.silence(one)
            await successor.until(lambda: len(successor.partitions) == harness.abilities.partitions)
            await successor.subscription.commit({partition: 9}, metadata="new")

            await refuses(zombie.subscription.commit({partition: 1}, metadata="old"))

            assert await successor.subscription.committed([partition]) == {partition: Committed(9, "new")}
            awake.set()


@groups.add(requires=["session_expiry"])
async def a_member_that_was_expelled_is_told_and_joins_anew(harness: Harness) -> None:
    topic, group = await new_topic(harness), harness.new_name()
    everything = partitions_of(harness, topic)
    async with opened(harness) as one, opened(harness) as other, member_of(one, [topic], group=group) as zombie:
        await zombie.settle()
        await harness.silence(one)
        async with consuming(other, [topic], group=group) as successor, fetching(zombie):
            await zombie.until(lambda: 0 < len(zombie.partitions) < len(everything))
            await successor.until(lambda: 0 < len(successor.partitions) < len(everything))

            assert zombie.partitions | successor.partitions == everything
    assert zombie.told[:2] == [("assigned", everything), ("revoked", everything)], zombie.told
