"""Python's values in SQLite's four storage classes: parameters by their class, columns by their declared type.

What goes in comes back equal, and compares in SQL as it does in Python: instants are stored in UTC with six decimals,
so that the order of the texts is the order of the instants; a Decimal is stored as a number, so that sums and
comparisons work, which is why one with more digits than a double keeps is refused.
"""

from __future__ import annotations

import contextlib
import json
import math
import sqlite3
import threading
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

from microflow.errors import SqlError

DIGITS_OF_A_DOUBLE = 15
LARGEST_INTEGER = 2**63 - 1


def encode(value: object) -> object:
    """A parameter as sqlite3 takes it. Raises SqlError for a value that would not come back as it is."""
    encoder = ENCODERS.get(type(value))
    if encoder is None:
        encoder = _encoder_of_base(value)
    return encoder(value)


def _encoder_of_base(value: object) -> Callable[[Any], object]:
    # datetime before date and bool before int: the former are subclasses of the latter, and the table is in that order.
    for kind, encoder in ENCODERS.items():
        if isinstance(value, kind):
            return encoder
    raise SqlError(
        f"a parameter is a {type(value).__qualname__}, which has no place in a database: {value!r:.80}",
        fix="Parameters are str, int, bool, float, bytes, Decimal, datetime, date, UUID, dict, list or None.",
    )


def _as_it_is(value: object) -> object:
    return value


def _text(value: str) -> str:
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as cause:
            raise SqlError(f"a parameter is text that UTF-8 cannot hold: {cause}") from cause
    return str(value)


def _integer(value: int) -> int:
    if -LARGEST_INTEGER - 1 <= value <= LARGEST_INTEGER:
        return int(value)
    raise SqlError(f"a parameter is an int of more than 64 bits: {value}", fix="Store it as text.")


def _float(value: float) -> float:
    if math.isnan(value):
        raise SqlError("a parameter is the float nan, which SQLite would store as null")
    return float(value)


def _decimal(value: Decimal) -> int | float:
    if not value.is_finite():
        raise SqlError(f"a parameter is the Decimal {value}, which SQLite cannot hold as a number")
    if value == value.to_integral_value() and abs(value) < 10**DIGITS_OF_A_DOUBLE:
        return int(value)
    digits = len(value.normalize().as_tuple().digits)
    number = float(value)
    if digits > DIGITS_OF_A_DOUBLE or Decimal(repr(number)) != value:
        raise SqlError(
            f"a parameter is the Decimal {value}: SQLite keeps {DIGITS_OF_A_DOUBLE} digits of a number",
            fix="Store it as text (a column of type text, and str(value)), or as an integer of a smaller unit.",
        )
    return number


def _datetime(value: datetime) -> str:
    if value.tzinfo is None:
        return value.isoformat(" ", "microseconds")
    return value.astimezone(UTC).isoformat(" ", "microseconds")


def _json(value: object) -> str:
    try:
        return json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as cause:
        raise SqlError(f"a parameter is a {type(value).__name__} that is no JSON: {cause}") from cause


ENCODERS: dict[type, Callable[[Any], object]] = {
    type(None): _as_it_is,
    str: _text,
    bool: int,
    int: _integer,
    float: _float,
    bytes: bytes,
    bytearray: bytes,
    memoryview: bytes,
    Decimal: _decimal,
    datetime: _datetime,
    date: date.isoformat,
    UUID: str,
    dict: _json,
    list: _json,
}


def _decode_boolean(value: bytes) -> bool:
    return value.lower() in {b"1", b"1.0", b"true", b"t", b"yes", b"on"}


def _decode_decimal(value: bytes) -> Decimal:
    return Decimal(value.decode())


def _decode_timestamp(value: bytes) -> datetime:
    instant = datetime.fromisoformat(value.decode())
    return instant if instant.tzinfo is None else instant.astimezone(UTC)


def _decode_timestamptz(value: bytes) -> datetime:
    instant = datetime.fromisoformat(value.decode())
    return instant.replace(tzinfo=UTC) if instant.tzinfo is None else instant.astimezone(UTC)


def _decode_date(value: bytes) -> date:
    return date.fromisoformat(value[:10].decode())


def _decode_uuid(value: bytes) -> UUID:
    return UUID(value.decode())


CONVERTERS: Mapping[str, Callable[[bytes], Any]] = {
    "BOOLEAN": _decode_boolean,
    "BOOL": _decode_boolean,
    "NUMERIC": _decode_decimal,
    "DECIMAL": _decode_decimal,
    "TIMESTAMP": _decode_timestamp,
    "DATETIME": _decode_timestamp,
    "TIMESTAMPTZ": _decode_timestamptz,
    "DATE": _decode_date,
    "UUID": _decode_uuid,
    "JSON": json.loads,
    "JSONB": json.loads,
}

_ours_are_in_place = threading.Lock()


@contextlib.contextmanager
def declared_types() -> Iterator[None]:
    """Let a statement executed inside give its columns as the Python values of their declared types.

    Only sqlite3 itself can tell the declared type of a result's column (through joins, subqueries, `returning`), and
    it looks for the converter in one table for the whole process, at the moment a statement is executed. Left there
    by `register_converter`, ours would change what the user's own connections give. So they are there for that
    moment only: about 1 µs.
    """
    with _converters() as table:
        table.update(CONVERTERS)
        yield


@contextlib.contextmanager
def stored_types() -> Iterator[None]:
    """Let a statement executed inside give its columns as SQLite stores them, whatever their declared types."""
    with _converters() as table:
        table.clear()
        yield


@contextlib.contextmanager
def _converters() -> Iterator[dict[str, Callable[[bytes], Any]]]:
    """The table of sqlite3, changed for a moment."""
    table = sqlite3.converters
    with _ours_are_in_place:
        before = dict(table)
        try:
            yield table
        finally:
            table.clear()
            table.update(before)
