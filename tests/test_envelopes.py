"""The envelope: CloudEvents' own examples, what we write, and what hostile records make of it."""

from __future__ import annotations

import json
import random
from datetime import UTC, datetime, timedelta, timezone
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from microflow.decoding import decode
from microflow.envelopes import (
    EPOCH,
    Envelope,
    Sealed,
    headers_of,
    open_envelope,
    position_digest,
    seal_emitted,
    seal_root,
    source_of,
)
from microflow.errors import ContractError, DecodeError
from microflow.events import Event, key_of
from microflow.ids import digest_of
from microflow.records import Headers, Record

NOW = datetime(2026, 5, 4, 3, 2, 1, 234_567, tzinfo=UTC)
ORIGIN = "log/mytopic#1"


class OrderPlaced(Event, key="order_id"):
    order_id: str
    note: bytes = b""


class Noted(Event):
    note: str


def a_record(headers: Headers, *, value: bytes | None = b"{}", offset: int = 17) -> Record:
    return Record("mytopic", 3, b"mykey", value, headers, NOW, offset)


def opened(record: Record, *, type_of_topic: str | None = None) -> Envelope:
    envelope = open_envelope(record, type_of_topic=type_of_topic, origin=ORIGIN)
    assert envelope is not None
    return envelope


def sealed_root(event: Event, **overrides: Any) -> Sealed:
    given: dict[str, Any] = {
        "service": "orders",
        "topic": "orders",
        "now": NOW,
        "random_bits": random.Random(1).getrandbits,
    }
    return seal_root(event, **given | overrides)


def sealed_from(cause: Envelope, event: Event, **overrides: Any) -> Sealed:
    given: dict[str, Any] = {
        "cause": cause,
        "cause_key": b"mykey",
        "service": "payments",
        "handler": "take_payment",
        "topic": "payments",
        "ordinal": 0,
        "now": NOW,
    }
    return seal_emitted(event, **given | overrides)


# ── CloudEvents' own examples ─────────────────────────────────────────────────────────────────────────────────────

# Kafka protocol binding 1.0.2, section 3.2.5.
BINARY: Headers = (
    ("ce_specversion", b"1.0"),
    ("ce_type", b"com.example.someevent"),
    ("ce_source", b"/mycontext/subcontext"),
    ("ce_id", b"1234-1234-1234"),
    ("ce_time", b"2018-04-05T03:56:24Z"),
    ("content-type", b"application/avro"),
)
EXAMPLE = Envelope(
    id="1234-1234-1234",
    source="/mycontext/subcontext",
    type="com.example.someevent",
    time=datetime(2018, 4, 5, 3, 56, 24, tzinfo=UTC),
    correlation_id="1234-1234-1234",
    causation_id=None,
    digest=digest_of("/mycontext/subcontext", "1234-1234-1234"),
    content=bytes.fromhex("1f4752e339694fd7"),
    content_type="application/avro",
)


def test_the_bindings_example_of_binary_mode_is_read() -> None:
    assert opened(a_record(BINARY)) == EXAMPLE


@pytest.mark.parametrize(
    "content_type", ["application/cloudevents+json; charset=UTF-8", "APPLICATION/CloudEvents+JSON"]
)
def test_the_bindings_example_of_structured_mode_is_read(content_type: str) -> None:
    value = json.dumps(
        {
            "specversion": "1.0",
            "type": "com.example.someevent",
            "source": "/mycontext/subcontext",
            "id": "1234-1234-1234",
            "time": "2018-04-05T03:56:24Z",
            "data": {"note": "hello"},
        }
    ).encode()

    envelope = opened(a_record((("content-type", content_type.encode()),), value=value))

    assert (envelope.id, envelope.source, envelope.type) == (EXAMPLE.id, EXAMPLE.source, EXAMPLE.type)
    assert (envelope.time, envelope.digest, envelope.content_type) == (EXAMPLE.time, EXAMPLE.digest, content_type)
    assert decode(Noted, value, envelope.content_type) == Noted(note="hello")


def test_the_correlation_extensions_example_is_read() -> None:
    example = {
        "specversion": "1.0",
        "type": "com.example.payment.processed",
        "source": "https://example.com/payments",
        "id": "payment-789",
        "correlationid": "txn-abc-123",
        "causationid": "order-123",
        "data": {"amount": 150.0, "currency": "USD"},
    }
    binary = tuple((f"ce_{name}", str(text).encode()) for name, text in example.items() if name != "data")
    structured = (("content-type", b"application/cloudevents+json"),)

    for record in (a_record(binary), a_record(structured, value=json.dumps(example).encode())):
        envelope = opened(record)
        assert (envelope.correlation_id, envelope.causation_id) == ("txn-abc-123", "order-123")


def test_an_unknown_event_format_is_taken_as_binary() -> None:
    headers = (*BINARY[:-1], ("content-type", b"application/cloudevents+avro"))

    assert opened(a_record(headers)).id == "1234-1234-1234"


def test_header_names_in_another_case_are_understood() -> None:
    headers = tuple((name.upper(), value) for name, value in BINARY)

    assert opened(a_record(headers)) == EXAMPLE
    assert opened(a_record((*headers, ("ce_id", b"exact")))).id == "exact"


def test_nothing_is_percent_encoded() -> None:
    headers = (("ce_type", "Größe%20€".encode()), ("ce_id", b"a%2Fb"), ("ce_source", "/dienste/größe".encode()))

    envelope = opened(a_record(headers))

    assert (envelope.type, envelope.id, envelope.source) == ("Größe%20€", "a%2Fb", "/dienste/größe")


# ── what we write ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_root_event_begins_a_flow_of_its_own() -> None:
    sealed = sealed_root(OrderPlaced(order_id="ord-1", note=b"\xff"))

    assert sealed.headers == (
        ("content-type", b"application/json"),
        ("ce_specversion", b"1.0"),
        ("ce_id", sealed.id.encode()),
        ("ce_type", b"OrderPlaced"),
        ("ce_source", b"/services/orders"),
        ("ce_time", b"2026-05-04T03:02:01.234567Z"),
        ("ce_correlationid", sealed.id.encode()),
        ("ce_partitionkey", b"ord-1"),
    )
    assert (sealed.topic, sealed.key, sealed.value) == ("orders", b"ord-1", b'{"order_id":"ord-1","note":"_w=="}')
    assert UUID(sealed.id).version == 7


def test_what_is_written_is_read_back() -> None:
    sealed = sealed_root(OrderPlaced(order_id="Grüße"), correlation_id="flow-€")

    envelope = opened(a_record(sealed.headers, value=sealed.value))

    assert (envelope.id, envelope.type, envelope.source) == (sealed.id, "OrderPlaced", source_of("orders"))
    assert (envelope.time, envelope.correlation_id, envelope.causation_id) == (NOW, "flow-€", None)
    assert envelope.digest == digest_of("/services/orders", sealed.id)


@pytest.mark.parametrize("name", ["ce_type", "ce_correlationid"])
def test_names_beyond_ascii_are_utf_8(name: str) -> None:
    class Bestellt(Event, key="nummer", type="größe.bestellt"):
        nummer: int

    sealed = sealed_root(Bestellt(nummer=7), correlation_id="größe.bestellt")

    assert dict(sealed.headers)[name] == "größe.bestellt".encode()


def test_every_attribute_name_is_one_that_cloudevents_allows() -> None:
    sealed = sealed_from(EXAMPLE, OrderPlaced(order_id="1"))

    for name, value in sealed.headers[1:]:
        prefix, attribute = name[:3], name[3:]
        assert prefix == "ce_"
        assert attribute.isalnum()
        assert attribute.islower()
        assert len(attribute) <= 20
        assert value


def test_an_emitted_event_belongs_to_its_causes_flow() -> None:
    sealed = sealed_from(EXAMPLE, OrderPlaced(order_id="ord-1"))

    headers = dict(sealed.headers)
    assert headers["ce_correlationid"] == EXAMPLE.correlation_id.encode()
    assert headers["ce_causationid"] == EXAMPLE.id.encode()
    assert headers["ce_source"] == b"/services/payments"


def test_an_emitted_event_has_its_own_key_or_else_its_causes() -> None:
    assert sealed_from(EXAMPLE, OrderPlaced(order_id="ord-1")).key == b"ord-1"
    assert sealed_from(EXAMPLE, Noted(note="x")).key == b"mykey"
    assert sealed_from(EXAMPLE, Noted(note="x"), cause_key=None).key is None


def test_the_partition_key_is_an_attribute_if_it_is_text() -> None:
    def partition_key(cause_key: bytes | None) -> bytes | None:
        return dict(sealed_from(EXAMPLE, Noted(note="x"), cause_key=cause_key).headers).get("ce_partitionkey")

    assert partition_key(b"mykey") == b"mykey"
    assert partition_key("größe".encode()) == "größe".encode()
    assert partition_key(b"\xff\xfe") is None
    assert partition_key(None) is None


def test_a_repeated_execution_seals_the_same_bytes_under_the_same_id() -> None:
    """Semantics 10."""
    first, again = (sealed_from(EXAMPLE, Noted(note="x")) for _ in range(2))

    assert first == again
    assert sealed_from(EXAMPLE, Noted(note="x"), ordinal=1).id != first.id
    assert sealed_from(EXAMPLE, OrderPlaced(order_id="1")).id != first.id
    assert sealed_from(EXAMPLE, Noted(note="x"), handler="other").id != first.id
    assert sealed_from(EXAMPLE, Noted(note="x"), service="other").id != first.id


def test_a_root_event_without_a_key_is_refused_with_what_to_type() -> None:
    with pytest.raises(ContractError, match="Noted has no key, and a root event needs one") as raised:
        sealed_root(Noted(note="x"))
    assert raised.value.fix == 'For example: class Noted(Event, key="order_id")'


@pytest.mark.parametrize("flow", ["x" * 5000, "a\nb"])
def test_a_flow_that_no_service_would_read_is_not_begun(flow: str) -> None:
    with pytest.raises(ContractError, match="the flow's id"):
        sealed_root(OrderPlaced(order_id="1"), correlation_id=flow)


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=50))
def test_any_text_is_a_key(text: str) -> None:
    event = OrderPlaced(order_id=text)

    sealed = sealed_root(event)

    assert sealed.key == text.encode()
    assert key_of(event) == text
    assert opened(a_record(sealed.headers)).id == sealed.id


# ── records of others ─────────────────────────────────────────────────────────────────────────────────────────────


def test_a_record_without_a_type_is_that_of_its_topic_or_nobodys() -> None:
    assert open_envelope(a_record(()), type_of_topic=None, origin=ORIGIN) is None
    assert open_envelope(a_record((("ce_type", b""),)), type_of_topic=None, origin=ORIGIN) is None
    assert opened(a_record(()), type_of_topic="OrderPlaced").type == "OrderPlaced"
    assert opened(a_record((("ce_type", b"Other"),)), type_of_topic="OrderPlaced").type == "Other"


@pytest.mark.parametrize("headers", [(), (("ce_source", b"/elsewhere"),), (("ce_id", b""), ("ce_source", b"/x"))])
def test_a_record_without_an_id_is_known_by_its_place(headers: Headers) -> None:
    """Semantics 9: cluster, topic incarnation, partition, offset."""
    record = a_record(headers)

    envelope = opened(record, type_of_topic="OrderPlaced")

    assert envelope == opened(record, type_of_topic="OrderPlaced")
    assert envelope.source == ORIGIN
    assert envelope.digest == position_digest(record, ORIGIN)
    assert envelope.correlation_id == envelope.id
    assert UUID(envelope.id).version == 7
    other = opened(a_record(headers, offset=18), type_of_topic="OrderPlaced")
    elsewhere = open_envelope(record, type_of_topic="OrderPlaced", origin="log/mytopic#2")
    assert elsewhere is not None
    assert len({envelope.id, other.id, elsewhere.id}) == 3


def test_a_record_without_a_source_is_unique_within_its_topic() -> None:
    envelope = opened(a_record((("ce_id", b"1"), ("ce_type", b"OrderPlaced"))))

    assert (envelope.id, envelope.source) == ("1", ORIGIN)


@pytest.mark.parametrize(
    ("text", "time"),
    [
        (b"2026-05-04T03:02:01Z", NOW.replace(microsecond=0)),
        (b"2026-05-04T05:02:01+02:00", NOW.replace(microsecond=0)),
        (b"2026-05-04T03:02:01", NOW.replace(microsecond=0)),
        (b"noon", NOW),
        (b"", NOW),
        (b"2026-13-45T00:00:00Z", NOW),
        (b"0001-01-01T00:00:00+23:59", NOW),
        (b"9999-12-31T23:59:59-23:59", NOW),
    ],
)
def test_a_time_that_is_none_is_that_of_the_log(text: bytes, time: datetime) -> None:
    envelope = opened(a_record((*BINARY[:4], ("ce_time", text))))

    assert envelope.time == time
    assert envelope.time.utcoffset() == timedelta(0)


def test_without_any_time_it_is_the_epoch() -> None:
    assert opened(Record("t", 0, None, b"{}", BINARY[:4])).time == EPOCH


def test_a_time_in_another_zone_is_written_in_utc() -> None:
    headers = headers_of(
        identifier="1",
        event_type="X",
        source="/s",
        now=NOW.astimezone(timezone(timedelta(hours=2))),
        correlation_id="1",
        causation_id=None,
        key=None,
    )

    assert dict(headers)["ce_time"] == b"2026-05-04T03:02:01.234567Z"


@pytest.mark.parametrize(
    "name", ["ce_id", "ce_type", "ce_source", "ce_correlationid", "ce_causationid", "content-type"]
)
@pytest.mark.parametrize(
    ("value", "told"),
    [
        (b"\xff\xfe", "is not UTF-8"),
        (b"x" * 100_000, "has 100,000 characters"),
        (b"a\x00b", "holds control characters"),
        (b"a\nb", "holds control characters"),
    ],
)
def test_a_hostile_header_is_refused_by_name(name: str, value: bytes, told: str) -> None:
    headers = tuple(dict([*BINARY, (name, value)]).items())

    with pytest.raises(DecodeError, match=f"{name} {told}"):
        opened(a_record(headers))


def test_headers_of_others_may_be_anything() -> None:
    others = (("x", b"\xff" * 100_000), ("", b""), ("ce_", b"\xff"), ("CE_ID", b"\xff"), ("ce_unknown", b"\xff"))

    assert opened(a_record((*BINARY, *others))).id == "1234-1234-1234"


def test_of_a_header_given_twice_the_last_one_counts() -> None:
    assert opened(a_record((*BINARY, ("ce_id", b"second")))).id == "second"


@pytest.mark.parametrize(
    "value", [None, b"", b"[", b"[]", b"5", b"\xff", b'{"id": 5}', b'{"id": "\\u0000"}', b"[" * 9999]
)
def test_structured_mode_that_is_none_is_refused(value: bytes | None) -> None:
    with pytest.raises(DecodeError):
        opened(a_record((("content-type", b"application/cloudevents+json"),), value=value), type_of_topic="X")


@given(
    st.lists(st.tuples(st.sampled_from([name for name, _ in BINARY]) | st.text(max_size=5), st.binary(max_size=30))),
    st.none() | st.binary(max_size=30),
)
def test_whatever_arrives_is_an_envelope_or_a_refusal(headers: list[tuple[str, bytes]], value: bytes | None) -> None:
    try:
        envelope = opened(a_record(tuple(headers), value=value), type_of_topic="X")
    except DecodeError as error:
        assert error.what  # noqa: PT017 - either outcome is right
    else:
        sealed = sealed_from(envelope, Noted(note="x"))
        assert opened(a_record(sealed.headers, value=sealed.value)).causation_id == envelope.id
