"""Keys land on the partitions where Kafka's own clients put them."""

from __future__ import annotations

import pytest
from aiokafka.partitioner import murmur2 as murmur2_of_aiokafka
from hypothesis import given
from hypothesis import strategies as st

from microflow.partitioner import Partitioner, murmur2

# org.apache.kafka.common.utils.UtilsTest.testMurmur2: Java's numbers are signed.
VECTORS = [
    (b"21", -973932308),
    (b"foobar", -790332482),
    (b"a-little-bit-long-string", -985981536),
    (b"a-little-bit-longer-string", -1486304829),
    (b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58897971),
    (b"abc", 479470107),
]


@pytest.mark.parametrize(("data", "expected"), VECTORS)
def test_murmur2_gives_what_kafkas_own_tests_expect(data: bytes, expected: int) -> None:
    assert murmur2(data) == expected % 2**32


@given(st.binary(max_size=200))
def test_murmur2_agrees_with_aiokafka(data: bytes) -> None:
    assert murmur2(data) == murmur2_of_aiokafka(data)


@given(st.binary(max_size=40), st.integers(min_value=1, max_value=1000))
def test_a_key_is_on_the_partition_where_kafka_puts_it(key: bytes, partitions: int) -> None:
    expected = (murmur2_of_aiokafka(key) & 0x7FFFFFFF) % partitions

    assert Partitioner().partition(key, partitions=partitions) == expected


def test_a_key_that_was_seen_goes_where_it_went_before_whatever_the_partition_count() -> None:
    partitioner = Partitioner()

    assert [partitioner.partition(b"order-7", partitions=count) for count in (6, 12, 6)] == [
        Partitioner().partition(b"order-7", partitions=count) for count in (6, 12, 6)
    ]


def test_what_is_remembered_is_bounded() -> None:
    partitioner = Partitioner(remember=10)

    partitions = {number: partitioner.partition(b"%d" % number, partitions=7) for number in range(1000)}

    assert len(partitioner._hashes) <= 10
    assert {number: partitioner.partition(b"%d" % number, partitions=7) for number in partitions} == partitions
