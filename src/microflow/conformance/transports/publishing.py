"""What a log promises to those who publish: all of it, unchanged, in order, or an error that says what is missing."""

from __future__ import annotations

import asyncio

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
from microflow.errors import RecordTooLarge, TransportError
from microflow.ports import Headers, Record

publishing = Scenarios()


@publishing.add()
async def a_record_comes_back_as_it_was_published(harness: Harness) -> None:
    topic = await new_topic(harness)
    async with opened(harness) as transport:
        await publish(transport, Record(topic, 1, b"a key", b"a value", (("ce_id", b"1"), ("ce_type", b"Paid"))))

        (record,) = await read_all(transport, topic)

    assert (record.topic, record.partition, record.key, record.value) == (topic, 1, b"a key", b"a value"), record
    assert record.headers == (("ce_id", b"1"), ("ce_type", b"Paid")), record.headers


@publishing.add()
async def a_stored_record_has_an_offset_and_an_aware_timestamp_close_to_now(harness: Harness) -> None:
    topic = await new_topic(harness)
    async with opened(harness) as transport:
        await publish(transport, *numbered(topic, 1))

        (record,) = await read_all(transport, topic)

    assert record.offset >= 0
    assert record.timestamp is not None
    assert abs((harness.clock.now() - record.timestamp).total_seconds()) < 60, record.timestamp


@publishing.add()
async def headers_keep_their_order_their_duplicates_and_every_byte(harness: Harness) -> None:
    topic = await new_topic(harness)
    every_byte = bytes(range(256))
    given: Headers = (("b", b"2"), ("a", b""), ("b", b"1"), ("b", b"2"), ("größe ✓", every_byte), ("", b"nameless"))
    async with opened(harness) as transport:
        await publish(transport, Record(topic, 0, b"k", b"v", given), Record(topic, 0, b"k", b"v"))

        first, second = await read_all(transport, topic)

    assert first.headers == given, first.headers
    assert second.headers == (), second.headers


@publishing.add()
async def null_and_empty_are_not_the_same(harness: Harness) -> None:
    topic = await new_topic(harness)
    given = [(None, None), (None, b""), (b"", None), (b"", b""), (b"k", None), (None, b"v")]
    async with opened(harness) as transport:
        await publish(transport, *(Record(topic, 0, key, value) for key, value in given))

        records = await read_all(transport, topic)

    assert [(record.key, record.value) for record in records] == given, records


@publishing.add()
async def each_partition_keeps_the_order_of_publishing(harness: Harness) -> None:
    topic = await new_topic(harness)
    async with opened(harness) as transport:
        for first in range(0, 300, 100):
            batches = zip(*(numbered(topic, 100, partition=each, first=first) for each in range(3)), strict=True)
            await publish(transport, *(record for batch in batches for record in batch))

        records = await read_all(transport, topic)

    for partition in range(3):
        assert values(records, partition=partition) == list(range(300)), partition


@publishing.add()
async def offsets_grow(harness: Harness) -> None:
    topic = await new_topic(harness)
    async with opened(harness) as transport:
        for first in range(3):
            await publish(transport, *numbered(topic, 2, first=2 * first))

        offsets = [record.offset for record in await read_all(transport, topic)]

    assert offsets == sorted(set(offsets)), offsets
    assert len(offsets) == 6


@publishing.add(requires=["dense_offsets"])
async def offsets_begin_at_zero_and_have_no_gaps(harness: Harness) -> None:
    topic = await new_topic(harness)
    async with opened(harness) as transport:
        for partition in (0, 2, 0):
            await publish(transport, *numbered(topic, 2, partition=partition))

        records = await read_all(transport, topic)

    assert [(each.partition, each.offset) for each in records] == [(0, 0), (0, 1), (0, 2), (0, 3), (2, 0), (2, 1)]


@publishing.add()
async def publishing_nothing_does_nothing(harness: Harness) -> None:
    async with opened(harness) as transport:
        assert list(await transport.publish([])) == []


@publishing.add()
async def a_record_of_the_largest_size_is_taken(harness: Harness) -> None:
    topic = await new_topic(harness)
    async with opened(harness) as transport:
        value = bytes(transport.max_record_bytes(topic) - len(b"key") - len("name") - len(b"content"))
        await publish(transport, Record(topic, 0, b"key", value, (("name", b"content"),)))

        (record,) = await read_all(transport, topic)

    assert record.value == value


@publishing.add()
async def what_comes_behind_a_record_that_is_too_large_is_not_stored(harness: Harness) -> None:
    topic = await new_topic(harness)
    async with opened(harness) as transport:
        too_large = Record(topic, 0, b"k", bytes(transport.max_record_bytes(topic) + 1))
        given = [*numbered(topic, 2), too_large, *numbered(topic, 1, first=2), *numbered(topic, 1, partition=1)]

        errors = await transport.publish(given)
        records = await read_all(transport, topic)

    assert errors[0] is None, errors
    assert errors[1] is None, errors
    assert isinstance(errors[2], RecordTooLarge), errors
    assert isinstance(errors[3], TransportError), errors
    assert errors[4] is None, errors
    assert values(records, partition=0) == [0, 1], records
    assert values(records, partition=1) == [0], records


@publishing.add()
async def headers_and_key_count_towards_the_size(harness: Harness) -> None:
    topic = await new_topic(harness)
    async with opened(harness) as transport:
        half = bytes(transport.max_record_bytes(topic) // 2)

        errors = await transport.publish(
            [Record(topic, 0, half, half + b"12"), Record(topic, 1, b"k", half, (("name", half),))]
        )

    assert [type(error) for error in errors] == [RecordTooLarge, RecordTooLarge], errors


@publishing.add()
async def a_partition_that_does_not_exist_fails_alone(harness: Harness) -> None:
    topic = await new_topic(harness)
    beyond = harness.abilities.partitions
    async with opened(harness) as transport:
        errors = await transport.publish([*numbered(topic, 2, partition=beyond), *numbered(topic, 1)])

        records = await read_all(transport, topic)

    assert isinstance(errors[0], TransportError), errors
    assert isinstance(errors[1], TransportError), errors
    assert errors[2] is None, errors
    assert values(records) == [0], records


@publishing.add()
async def two_who_publish_at_once_lose_and_reorder_nothing(harness: Harness) -> None:
    topic = await new_topic(harness)
    async with opened(harness) as one, opened(harness) as other:

        async def publish_batches(begin: int, count: int) -> None:
            transport = one if begin == 0 else other
            for first in range(begin, begin + count, 10):
                await publish(transport, *numbered(topic, 10, first=first))

        await asyncio.gather(publish_batches(0, 100), publish_batches(1000, 100))
        records = await read_all(one, topic)

    found = values(records)
    assert [value for value in found if value < 1000] == list(range(100)), found
    assert [value for value in found if value >= 1000] == list(range(1000, 1100)), found
    assert len({record.offset for record in records}) == 200


@publishing.add()
async def what_was_published_is_there_for_others(harness: Harness) -> None:
    topic = await new_topic(harness)
    async with opened(harness) as one, opened(harness) as other:
        await publish(one, *numbered(topic, 3))

        assert values(await read_all(other, topic)) == [0, 1, 2]


@publishing.add(requires=["persistent"])
async def what_was_published_is_there_after_everybody_has_gone(harness: Harness) -> None:
    topic = await new_topic(harness)
    async with opened(harness) as transport:
        await publish(transport, *numbered(topic, 3))

    async with opened(harness) as transport:
        await publish(transport, *numbered(topic, 1, first=3))
        assert values(await read_all(transport, topic)) == [0, 1, 2, 3]
