"""Decoding: what does not fit is told field by field, and nothing hostile does more than that."""

from __future__ import annotations

import json
import resource
import sys
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field, field_validator

from microflow.decoding import decode
from microflow.errors import DecodeError
from microflow.events import Event, options_of


class Line(Event):
    price: Decimal


class OrderAccepted(Event, key="order_id"):
    order_id: str
    total: Decimal
    count: int = 0
    share: float = 0
    at: datetime | None = None
    wait: timedelta = timedelta(0)
    identity: UUID | None = None
    paid: bool = False
    raw: bytes = b""
    notes: list[str] = Field(default_factory=list)
    lines: list[Line] = Field(default_factory=list)
    table: dict[str, int] = Field(default_factory=dict)

    @field_validator("count")
    @classmethod
    def not_thirteen(cls, count: int) -> int:
        if count == 13:
            raise ValueError("thirteen is bad luck")
        if count == 14:
            raise KeyError("a bug in the validator")
        return count


def refusal(value: bytes | None, content_type: str | None = None) -> DecodeError:
    with pytest.raises(DecodeError) as raised:
        decode(OrderAccepted, value, content_type)
    return raised.value


def test_the_value_is_read_into_the_readers_own_view() -> None:
    assert decode(OrderAccepted, b'{"order_id": "1", "total": "12.50"}', None) == OrderAccepted(
        order_id="1", total=Decimal("12.50")
    )


def test_what_does_not_fit_is_told_field_by_field() -> None:
    error = refusal(b'{"total": "12,50", "lines": [{"price": "x"}]}')

    assert error.what == "OrderAccepted does not fit its schema:"
    assert error.why is not None
    assert error.why.splitlines() == [
        "order_id: expected a value, got nothing",
        'total: expected a number, got "12,50"',
        'lines[0].price: expected a number, got "x"',
    ]
    assert error.where == options_of(OrderAccepted).where


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ('"count": 1.5', "count: expected a whole number, got 1.5"),
        ('"count": null', "count: expected a whole number, got null"),
        ('"count": 13', "count: thirteen is bad luck, got 13"),
        ('"share": "much"', 'share: expected a number, got "much"'),
        ('"at": "noon"', 'at: expected a date and time, got "noon"'),
        ('"wait": "long"', 'wait: expected a duration, got "long"'),
        ('"identity": 7', "identity: expected a UUID, got 7"),
        ('"paid": "perhaps"', 'paid: expected true or false, got "perhaps"'),
        ('"raw": "%%"', 'raw: expected bytes in base64, got "%%"'),
        ('"notes": {"a": 1}', "notes: expected a list, got an object"),
        ('"notes": [[1, 2]]', "notes[0]: expected text, got a list of 2"),
        ('"lines": [3]', "lines[0]: expected an object, got 3"),
        ('"table": [1]', "table: expected an object, got a list of 1"),
        ('"count": ' + "9" * 5000, "the value is no JSON: number out of range at line 1 column 4341"),
    ],
)
def test_each_kind_of_misfit_has_its_words(fields: str, told: str) -> None:
    assert refusal(b'{"order_id": "1", "total": 1, ' + fields.encode() + b"}").why == told


def test_long_values_are_cut_and_stay_on_one_line() -> None:
    why = refusal(b'{"order_id": "1", "total": "' + b"line\\n" * 1000 + b'"}').why

    assert why is not None
    assert "\n" not in why
    assert len(why) < 120


def test_at_most_five_fields_are_told() -> None:
    table = ", ".join(f'"k{number}": "x"' for number in range(9))

    why = refusal(f'{{"order_id": "1", "total": 1, "table": {{{table}}}}}'.encode()).why

    assert why is not None
    assert len(why.splitlines()) == 6
    assert why.endswith("\nand 4 more")


def test_an_exception_in_a_validator_is_a_misfit_too() -> None:
    error = refusal(b'{"order_id": "1", "total": 1, "count": 14}')

    assert error.why == "KeyError: 'a bug in the validator'"
    assert isinstance(error.__cause__, KeyError)


def test_a_null_value_is_a_tombstone_and_an_empty_one_is_no_event() -> None:
    assert "tombstone" in str(refusal(None))
    assert "empty" in str(refusal(b""))


@pytest.mark.parametrize(
    "content_type",
    [None, "", "application/json", "Application/JSON; charset=utf-8", "application/vnd.shop.order+json"],
)
def test_json_is_read_under_each_of_its_names(content_type: str | None) -> None:
    assert decode(Line, b'{"price": 1}', content_type) == Line(price=Decimal(1))


@pytest.mark.parametrize(
    "content_type",
    ["text/plain", "application/avro", "application/cloudevents+avro", "application/cloudevents-batch+json"],
)
def test_another_content_type_is_refused_by_name(content_type: str) -> None:
    assert repr(content_type) in str(refusal(b'{"order_id": "1", "total": 1}', content_type))


STRUCTURED = "application/cloudevents+json; charset=UTF-8"


def test_structured_mode_holds_the_event_in_its_data() -> None:
    value = b'{"specversion": "1.0", "data": {"price": "0.10"}, "datacontenttype": "application/json"}'

    assert decode(Line, value, STRUCTURED) == Line(price=Decimal("0.10"))
    assert decode(Line, b'{"data_base64": "eyJwcmljZSI6IDJ9"}', STRUCTURED) == Line(price=Decimal(2))


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (b"{}", "data: expected a value, got nothing"),
        (b"[]", "the value: expected an object, got a list of 0"),
        (b'{"data": {"order_id": 1, "total": 2}}', "data.order_id: expected text, got 1"),
        (b'{"data": "<x/>", "datacontenttype": "application/xml"}', "'application/xml' is unknown"),
        (b'{"data_base64": "%%"}', "data_base64: expected bytes in base64"),
        (b'{"data": {}, "datacontenttype": 5}', "datacontenttype: expected text, got 5"),
        (b"\xff", "no JSON"),
    ],
)
def test_structured_mode_that_is_wrong_is_refused(value: bytes, told: str) -> None:
    assert told in str(refusal(value, STRUCTURED))


@pytest.mark.parametrize(
    "value",
    [
        b"[" * 100_000,
        b'{"order_id": "1", "total": 1, "x": ' + b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"order_id": "\xff", "total": 1}',
        b'{"order_id": "\\ud800", "total": 1}',
        b'{"order_id": "1", "total": NaN}',
        b'{"order_id": "1", "total": 1e999999999}',
        b'{"order_id": "1", "total": ' + b"1" * 100_000 + b"}",
        b"\x00" * 1000,
        b"\xef\xbb\xbf{}",
        b"nul",
        b"null",
        b"[]",
        b'"text"',
    ],
)
def test_hostile_values_are_refused(value: bytes) -> None:
    text = str(refusal(value))

    assert len(text) < 1000


def test_of_a_field_given_twice_the_last_one_counts() -> None:
    assert decode(Line, b'{"price": 1, "price": 2}', None) == Line(price=Decimal(2))


@pytest.mark.parametrize("field", [b'"notes": [' + b"1," * 1_000_000 + b"1]", None])
def test_a_million_wrong_items_cost_little_memory(field: bytes | None) -> None:
    if field is None:
        field = b'"table": {' + b",".join(b'"%d":"x"' % number for number in range(100_000)) + b"}"
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    text = str(refusal(b'{"order_id": "1", "total": 1, ' + field + b"}"))

    kibibytes = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // (
        1 if sys.platform != "darwin" else 1024
    )
    assert kibibytes < 100_000
    assert len(text) < 1000


@given(st.binary(max_size=200) | st.text(max_size=100).map(str.encode), st.none() | st.text(max_size=60))
def test_whatever_arrives_is_an_event_or_a_refusal(value: bytes, content_type: str | None) -> None:
    try:
        decode(OrderAccepted, value, content_type)
    except DecodeError as error:
        assert error.what  # noqa: PT017 - either outcome is right


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from(sorted(OrderAccepted.model_fields)), json_values))
def test_any_json_object_is_an_event_or_a_refusal(fields: dict[str, Any]) -> None:
    try:
        decode(OrderAccepted, json.dumps(fields).encode(), None)
    except DecodeError as error:
        assert len(str(error)) < 2000  # noqa: PT017 - either outcome is right


def test_of_thousands_of_wrong_fields_only_the_number_is_told() -> None:
    table = ",".join(f'"{number}":"x"' for number in range(1001))

    assert refusal(f'{{"order_id": "1", "total": 1, "table": {{{table}}}}}'.encode()).why == "1001 fields"
