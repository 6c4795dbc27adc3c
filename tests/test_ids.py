"""Identity (semantics 9 and 10): claims by source and id, and ids derived from what caused them."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta
from uuid import UUID

from hypothesis import given
from hypothesis import strategies as st

from microflow.ids import content_of, derived_id, digest_of, id_of_position, idempotency_key, root_id

NOW = datetime(2026, 5, 4, 3, 2, 1, 234_000, tzinfo=UTC)
MILLISECONDS = 1_777_863_721_234
CAUSE = digest_of("/services/orders", "e-1")
instants = st.datetimes(timezones=st.just(UTC))


def derive(
    cause: bytes = CAUSE,
    cause_id: str = "e-1",
    cause_time: datetime = NOW,
    service: str = "payments",
    handler: str = "take_payment",
    event_type: str = "PaymentReceived",
    ordinal: int = 0,
) -> str:
    return derived_id(
        cause, cause_id, cause_time, service=service, handler=handler, event_type=event_type, ordinal=ordinal
    )


def is_uuid7(text: str, milliseconds: int) -> bool:
    identity = UUID(text)
    return (
        str(identity) == text
        and identity.version == 7
        and identity.variant == "specified in RFC 4122"
        and identity.int >> 80 == milliseconds
    )


def test_known_values_stay_as_they_are() -> None:
    """Ids are on the wire and in every inbox: another derivation would take redeliveries for new events."""
    assert digest_of("/services/orders", "e-1").hex() == "2985bcb48490085dabc219c77efcc179"
    assert content_of(b"{}").hex() == "1f4752e339694fd7"
    assert derive() == "019df0ef-8112-72cf-80ae-8ae824f2f6d1"
    assert id_of_position(CAUSE, NOW) == "019df0ef-8112-739b-adac-d7e441426e33"
    assert (
        idempotency_key(CAUSE, service="payments", handler="take_payment", label="")
        == "6ac34ffe9549508da7de91ab39c59882"
    )


@given(instants, st.integers(0, 2**74 - 1))
def test_a_root_id_has_the_layout_of_version_7_and_the_time(now: datetime, bits: int) -> None:
    milliseconds = max(0, (now - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(milliseconds=1))

    text = root_id(now, lambda count: bits if count == 74 else 0)

    assert is_uuid7(text, milliseconds % 2**48)
    identity = UUID(text).int
    assert (identity >> 64 & 0xFFF) << 62 | identity & (2**62 - 1) == bits


@given(st.lists(st.datetimes(datetime(1970, 1, 2), timezones=st.just(UTC)), min_size=2, max_size=2, unique=True))  # noqa: DTZ001
def test_ids_sort_by_time_to_the_millisecond(two: list[datetime]) -> None:
    earlier, later = sorted(two)
    generator = random.Random(1)

    if later - earlier >= timedelta(milliseconds=1):
        assert root_id(earlier, generator.getrandbits) < root_id(later, generator.getrandbits)


@given(instants, st.integers(0, 2**64))
def test_two_root_ids_of_one_instant_differ(now: datetime, seed: int) -> None:
    generator = random.Random(seed)

    assert root_id(now, generator.getrandbits) != root_id(now, generator.getrandbits)


def test_a_derived_id_takes_its_time_from_the_causes_id() -> None:
    cause_id = root_id(NOW, random.Random(1).getrandbits)

    assert is_uuid7(derive(cause_id=cause_id, cause_time=NOW + timedelta(days=1)), MILLISECONDS)


def test_or_from_the_causes_time_if_its_id_holds_none() -> None:
    for cause_id in (
        "e-1",
        "",
        "7" * 36,
        "0190163d-8694-4222-8333-444444444444",
        "0190163d-8694-7222-c333-44444444444g",
    ):
        assert is_uuid7(derive(cause_id=cause_id), MILLISECONDS)


@given(instants)
def test_a_derived_id_is_version_7_whatever_the_time_of_its_cause(time: datetime) -> None:
    identity = UUID(derive(cause_time=time))

    assert identity.version == 7


def test_an_execution_repeated_derives_the_same_id() -> None:
    assert derive() == derive()


names = st.text(min_size=1, max_size=4)
what = st.tuples(st.binary(min_size=16, max_size=16), names, names, names, st.integers(0, 20))


@given(what, what)
def test_a_derived_id_differs_by_cause_service_handler_type_and_ordinal(
    one: tuple[bytes, str, str, str, int], other: tuple[bytes, str, str, str, int]
) -> None:
    ids = [
        derive(cause=cause, service=service, handler=handler, event_type=event_type, ordinal=ordinal)
        for cause, service, handler, event_type, ordinal in (one, other)
    ]

    assert (ids[0] == ids[1]) == (one == other)


def test_names_that_run_into_each_other_are_told_apart() -> None:
    assert derive(service="a", handler="bc") != derive(service="ab", handler="c")
    assert derive(service="a\0b", handler="c") != derive(service="a", handler="b\0c")
    assert derive(event_type="A1", ordinal=1) != derive(event_type="A", ordinal=11)


@given(names, names, names, names)
def test_a_digest_stands_for_source_and_id_together(a: str, b: str, c: str, d: str) -> None:
    assert (digest_of(a, b) == digest_of(c, d)) == ((a, b) == (c, d))
    assert len(digest_of(a, b)) == 16


@given(instants, instants, st.integers(0, 2**74 - 1), names)
def test_digests_of_ids_with_a_time_stand_in_the_order_of_their_times(
    one: datetime, other: datetime, bits: int, source: str
) -> None:
    earlier, later = (root_id(now, lambda _: bits) for now in sorted([one, other]))

    assert digest_of(source, earlier)[:6] <= digest_of(source, later)[:6]
    assert len(digest_of(source, later)) == 16
    assert (digest_of(source, earlier) == digest_of(source, later)) == (earlier == later)


def test_no_value_and_an_empty_one_are_different_contents() -> None:
    assert len({content_of(None), content_of(b""), content_of(b"{}")}) == 3


def test_the_id_of_a_record_that_brought_none_depends_on_its_place_only() -> None:
    assert id_of_position(CAUSE, NOW) == id_of_position(CAUSE, NOW)
    assert id_of_position(CAUSE, NOW) != id_of_position(digest_of("other", "1"), NOW)
    assert is_uuid7(id_of_position(CAUSE, NOW), MILLISECONDS)
