"""Hostile input, from the log to the database: a dead letter or a clear refusal, the process alive, the partition
going on."""

from __future__ import annotations

from pathlib import Path

import pytest

from microflow.clocks import SystemClock
from microflow.context import Context
from microflow.errors import RecordTooLarge
from microflow.events import Event
from microflow.handlers import on
from microflow.ports import Headers, Record
from microflow.retries import Retry
from microflow.service import Service
from microflow.transports.local import LocalTransport
from tests.asynchronous import asynchronous
from tests.crash.one_process import OneProcess

MANY = 10 * 1024 * 1024


class Deposited(Event, key="account"):
    account: str
    number: int
    text: str = ""


@on("Deposited", retry=Retry.never())
async def deposit(deposited: Deposited, context: Context) -> None:
    context.write("insert into effects values ('deposit', $1, $2)", deposited.number, deposited.text)


service = Service("deposits")

GOOD_VALUE = b'{"account": "anna", "number": 1}'


def with_header(name: str, value: bytes) -> Headers:
    return tuple((each, value if each == name else before) for each, before in HEADERS)


HEADERS: Headers = (
    ("content-type", b"application/json"),
    ("ce_specversion", b"1.0"),
    ("ce_id", b"hostile"),
    ("ce_type", b"Deposited"),
    ("ce_source", b"/services/somebody"),
    ("ce_time", b"2026-01-01T00:00:00Z"),
    ("ce_correlationid", b"flow"),
)

# What becomes of it: a dead letter, an effect after all, or nothing because it is none of the service's business.
HOSTILE: dict[str, tuple[bytes | None, Headers, str]] = {
    "value that is not UTF-8": (b'{"account": "\xff\xfe", "number": 1}', HEADERS, "decode"),
    "value that is no JSON": (b"\x00\x01\x02", HEADERS, "decode"),
    "half a value": (GOOD_VALUE[:-5], HEADERS, "decode"),
    "10 MB of zeros": (bytes(MANY), HEADERS, "decode"),
    "10 MB in one field": (b'{"account": "anna", "number": 1, "text": "' + b"x" * MANY + b'"}', HEADERS, "done"),
    "10 MB in a field that nobody reads": (
        b'{"account": "anna", "number": 1, "other": "' + b"x" * MANY + b'"}',
        HEADERS,
        "done",
    ),
    "deep lists": (b"[" * 1_000_000 + b"]" * 1_000_000, HEADERS, "decode"),
    "deep lists in a field that nobody reads": (
        b'{"account": "anna", "number": 1, "other": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        HEADERS,
        "decode",
    ),
    "deep objects": (b'{"a":' * 500_000 + b"1" + b"}" * 500_000, HEADERS, "decode"),
    "wrong type": (b'{"account": "anna", "number": "one"}', HEADERS, "decode"),
    "missing field": (b'{"account": "anna"}', HEADERS, "decode"),
    "a list": (b"[1, 2, 3]", HEADERS, "decode"),
    "null": (b"null", HEADERS, "decode"),
    "a number of 100 000 digits": (b'{"account": "anna", "number": ' + b"9" * 100_000 + b"}", HEADERS, "decode"),
    "a number of more than 64 bits": (b'{"account": "anna", "number": 99999999999999999999}', HEADERS, "exhausted"),
    "half a surrogate": (b'{"account": "anna", "number": 1, "text": "\\ud800"}', HEADERS, "decode"),
    "null value": (None, HEADERS, "decode"),
    "empty value": (b"", HEADERS, "decode"),
    "no headers": (GOOD_VALUE, (), "done"),
    "no headers and no value": (None, (), "decode"),
    "another type": (GOOD_VALUE, with_header("ce_type", b"Withdrawn"), "skipped"),
    "type that is not UTF-8": (GOOD_VALUE, with_header("ce_type", b"\xff\xfe"), "decode"),
    "id that is not UTF-8": (GOOD_VALUE, with_header("ce_id", b"\xff\xfe"), "decode"),
    "id of a megabyte": (GOOD_VALUE, with_header("ce_id", b"x" * 1_000_000), "decode"),
    "id with line ends": (GOOD_VALUE, with_header("ce_id", b"a\r\nSet-Cookie: b"), "decode"),
    "flow with an escape sequence": (GOOD_VALUE, with_header("ce_correlationid", b"\x1b[2J"), "decode"),
    "time that is none": (GOOD_VALUE, with_header("ce_time", b"yesterday"), "done"),
    "time at the end of time": (GOOD_VALUE, with_header("ce_time", b"9999-12-31T23:59:59-14:00"), "done"),
    "content type that nobody reads": (GOOD_VALUE, with_header("content-type", b"image/png"), "decode"),
    "10 000 headers": (GOOD_VALUE, (*HEADERS, *((f"x-{number}", b"y") for number in range(10_000))), "done"),
    "headers that repeat": (GOOD_VALUE, HEADERS * 3, "done"),
}
KEYS: dict[str, bytes | None] = {
    "null key": None,
    "empty key": b"",
    "key that is not UTF-8": b"\xff\xfe\x00",
    "key of a megabyte": b"k" * 1_000_000,
}


@pytest.mark.parametrize("name", HOSTILE)
@asynchronous
async def test_hostile_records_stall_nobody(tmp_path: Path, name: str) -> None:
    value, headers, expected = HOSTILE[name]
    async with OneProcess(service, tmp_path) as process:
        hostile = Record("Deposited", 0, b"anna", value, headers)
        good = process.record(Deposited(account="anna", number=42))._replace(partition=0)
        await process.publish([hostile, good])
        await process.until(lambda: process.rows("select 1 from effects where number = 42") != [], "the next is done")
        await process.until_idle()

        letters = await process.store.dead_letters.list()

        if expected in {"done", "skipped"}:
            assert letters == []
            assert process.rows("select count(*) from effects") == [(2 if expected == "done" else 1,)]
        else:
            (letter,) = letters
            assert letter.reason == expected
            assert (letter.record.value, letter.record.headers, letter.record.key) == (value, headers, b"anna")
            assert process.rows("select count(*) from effects") == [(1,)]


@pytest.mark.parametrize("name", KEYS)
@asynchronous
async def test_hostile_keys_are_handled_like_any_other(tmp_path: Path, name: str) -> None:
    async with OneProcess(service, tmp_path) as process:
        await process.publish(
            [Record("Deposited", 0, KEYS[name], GOOD_VALUE, with_header("ce_id", str(n).encode())) for n in range(3)]
        )
        await process.until(lambda: process.ended["deposit", "done"] == 3, "all three are done")

        assert process.rows("select count(*) from effects") == [(3,)]


@asynchronous
async def test_a_record_that_is_too_large_for_the_log_is_refused_by_it(tmp_path: Path) -> None:
    transport = LocalTransport.open(tmp_path / "log.db", clock=SystemClock())

    (error,) = await transport.publish([Record("Deposited", 0, b"anna", bytes(MANY))])

    assert isinstance(error, RecordTooLarge)
    assert "a record of 10485764 bytes for Deposited[0]; the log takes 1047564" in str(error)
    await transport.close()
