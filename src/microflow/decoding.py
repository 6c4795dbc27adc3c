"""Decoding: a record's value becomes the event that its reader declared, or a sentence that says what did not fit.

Source: CloudEvents Kafka protocol binding 1.0.2. In binary mode the value is the event's data and `content-type` its
media type; in structured mode (`application/cloudevents+json`) the value is a JSON object that holds the data.
"""

from __future__ import annotations

import json
from functools import lru_cache
from typing import Annotated, Any, NoReturn

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model
from pydantic_core import ErrorDetails

from microflow.errors import DecodeError
from microflow.events import Message, options_of

STRUCTURED = "application/cloudevents+json"
LONGEST_VALUE = 60
MOST_FIELDS = 5


def decode(event_class: type[Message], value: bytes | None, content_type: str | None) -> Message:
    """The event in a record's value. Unknown fields are ignored; a missing `content_type` means JSON.

    Raises DecodeError, and nothing else, for a value that does not hold the event: it names every field that does
    not fit with what was expected and what arrived.
    """
    try:
        return _decode(event_class, value, content_type)
    except (DecodeError, MemoryError):
        raise
    except ValidationError as cause:
        # Not chained: it holds the whole value and, for a hostile one, millions of errors.
        raise _misfit(event_class, cause) from None
    except Exception as cause:  # a validator of the user's may raise anything; it says that the event does not fit
        _refuse(event_class, f"{type(cause).__name__}: {_cut(str(cause))}", cause)


@lru_cache(maxsize=256)
def media_type(content_type: str | None) -> str:
    """A content type without its parameters, in lower case; JSON if there is none."""
    return (content_type or "").partition(";")[0].strip().lower() or "application/json"


def _decode(event_class: type[Message], value: bytes | None, content_type: str | None) -> Message:
    if value is None:
        _refuse(event_class, "The record has no value (null): on a compacted topic that is a tombstone, not an event.")
    if not value:
        _refuse(event_class, "The record's value is empty, and an event is at least {}.")
    media = media_type(content_type)
    if media == STRUCTURED:
        return _decode_structured(event_class, value)
    _refuse_unless_json(event_class, media)
    # The validator itself, because a field of the user's may have the name of a method of the model.
    event: Message = event_class.__pydantic_validator__.validate_json(value)
    return event


class _Wrapping(BaseModel):
    """What a CloudEvent in structured mode says of its data."""

    datacontenttype: str | None = None
    data_base64: Annotated[bytes, Field(strict=True)] | None = None

    model_config = ConfigDict(val_json_bytes="base64")


@lru_cache(maxsize=1000)
def _data_of(event_class: type[Message]) -> type[BaseModel]:
    # The data is validated where it stands, as JSON: in Python values a date or a decimal would not be text.
    return create_model("Data", data=(event_class, ...))


def _decode_structured(event_class: type[Message], value: bytes) -> Message:
    wrapping = _Wrapping.model_validate_json(value)
    if wrapping.data_base64 is not None:
        return _decode(event_class, wrapping.data_base64, wrapping.datacontenttype)
    _refuse_unless_json(event_class, media_type(wrapping.datacontenttype))
    event: Message = getattr(_data_of(event_class).model_validate_json(value), "data")  # noqa: B009 - a dynamic model
    return event


def _refuse_unless_json(event_class: type[Message], media: str) -> None:
    if media.startswith("application/cloudevents") or not (media == "application/json" or media.endswith("+json")):
        readable = "application/json and what ends with +json are read"
        _refuse(event_class, f"The content type {_cut(media)!r} is unknown: {readable}.")


def _refuse(event_class: type[Message], why: str, cause: Exception | None = None) -> NoReturn:
    options = options_of(event_class)
    raise DecodeError(f"{options.type} does not fit its schema.", where=options.where or None, why=why) from cause


# ── what did not fit ──────────────────────────────────────────────────────────────────────────────────────────────


def _misfit(event_class: type[Message], error: ValidationError) -> DecodeError:
    options = options_of(event_class)
    count = error.error_count()
    # Each detail costs half a kilobyte; of hostile thousands only the number is told.
    details = error.errors(include_url=False, include_context=False) if count <= 1000 else []
    lines = [_line(each) for each in details[:MOST_FIELDS]]
    if count > len(lines):
        lines.append(f"{'and ' if lines else ''}{count - len(lines)} {'more' if lines else 'fields'}")
    return DecodeError(f"{options.type} does not fit its schema:", where=options.where or None, why="\n".join(lines))


def _line(detail: ErrorDetails) -> str:
    if detail["type"] == "json_invalid":
        return f"the value is no JSON: {_cut(detail['msg'].removeprefix('Invalid JSON: '))}"
    field = _place(detail["loc"]) or "the value"
    expected = _expected(detail)
    if expected is None:
        return f"{field}: {_cut(detail['msg'].removeprefix('Value error, '))}, got {_got(detail['input'])}"
    got = "nothing" if detail["type"] == "missing" else _got(detail["input"])
    return f"{field}: expected {expected}, got {got}"


_EXPECTED = {
    "missing": "a value",
    "string": "text",
    "int": "a whole number",
    "float": "a number",
    "finite_number": "a number that is finite",
    "decimal": "a number",
    "is_instance_of": "another type",
    "bool": "true or false",
    "uuid": "a UUID",
    "datetime": "a date and time",
    "date": "a date",
    "time_delta": "a duration",
    "timezone": "a date and time with its time zone",
    "time": "a time of day",
    "bytes": "bytes in base64",
    "list": "a list",
    "tuple": "a list",
    "set": "a list",
    "frozen_set": "a list",
    "dict": "an object",
    "model": "an object",
    "none_required": "null",
}
# What is wrong with these is not their type: pydantic's own words say more.
_OWN_WORDS = (
    "string_too",
    "string_pattern",
    "too_",
    "greater_",
    "less_",
    "multiple_",
    "decimal_max",
    "decimal_whole",
    "date_past",
    "date_future",
    "datetime_past",
    "datetime_future",
)


def _expected(detail: ErrorDetails) -> str | None:
    kind = detail["type"]
    should_be = detail["msg"].removeprefix("Input should be ")
    if not kind.startswith(_OWN_WORDS):
        # The longest prefix counts: `time_delta_type` is a duration, no time of day.
        for prefix in sorted(_EXPECTED, key=len, reverse=True):
            if kind == prefix or kind.startswith(f"{prefix}_"):
                return _EXPECTED[prefix]
    return _cut(should_be) if should_be != detail["msg"] else None


def _place(location: tuple[int | str, ...]) -> str:
    text = ""
    for part in location:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return _cut(text)


def _got(value: Any) -> str:
    match value:
        case str():
            return json.dumps(_cut(value), ensure_ascii=False)
        case bool() | None:
            return json.dumps(value)
        case int():
            # Python refuses to print integers of thousands of digits; such a one is hostile anyway.
            return _cut(str(value)) if value.bit_length() < 4096 else "an integer of thousands of digits"
        case float():
            return _cut(str(value))
        case list() | tuple():
            return f"a list of {len(value)}"
        case dict():
            return "an object"
        case _:
            return _cut(type(value).__name__)


def _cut(text: str) -> str:
    """A text on one line, of bounded length: what it says comes from outside."""
    line = " ".join(text[: LONGEST_VALUE * 2].split()) if "\n" in text or "\r" in text else text
    return line if len(line) <= LONGEST_VALUE else f"{line[: LONGEST_VALUE - 1]}…"
