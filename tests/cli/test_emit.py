"""`microflow emit`: what is typed becomes records of the log, or is refused before any is."""

from __future__ import annotations

import json
import subprocess
from typing import Any

import pytest

from microflow.cli.event_forms import Form, read_fields
from microflow.errors import ContractError
from tests.cli.projects import COMMAND, Project, clean_environment

READ = """
import asyncio, json
from datetime import timedelta
from pathlib import Path
from microflow.clocks import SystemClock
from microflow.log_reader import LogReader
from microflow.transports.local import LocalTransport

async def main():
    transport = LocalTransport.open(Path(".microflow/log.db"), clock=SystemClock())
    topics = list(await transport.topics.describe())
    async with LogReader.open(transport, topics) as reader:
        while records := await reader.read(wait=timedelta(milliseconds=200)):
            for record in records:
                headers = {name: value.decode() for name, value in record.headers}
                print(json.dumps([record.topic, record.key.decode(), json.loads(record.value), headers]))
    await transport.close()
asyncio.run(main())
"""


def log_of(project: Project) -> list[tuple[str, str, dict[str, Any], dict[str, str]]]:
    """Topic, key, value and headers of every record."""
    ended = subprocess.run(
        [COMMAND[0], "-c", READ],
        cwd=project.folder,
        env=clean_environment(),
        capture_output=True,
        text=True,
        timeout=20,
        check=True,
    )
    return [tuple(json.loads(line)) for line in ended.stdout.splitlines()]


def refused(project: Project, *arguments: str, stdin: str = "") -> str:
    ended = project.run("emit", *arguments, stdin=stdin)
    assert ended.returncode == 2, ended.stdout + ended.stderr
    assert "Traceback" not in ended.stderr
    assert not (project.folder / ".microflow").exists() or log_of(project) == []
    return ended.stderr


def test_fields_are_text_or_json_and_the_record_is_a_cloud_event(project: Project) -> None:
    [told] = project.json_lines(
        "emit", "OrderAccepted", "order_id=o-1", "total:=12.5", 'items:=["a"]', "--key", "order_id", "--flow", "f-1"
    )

    [(topic, key, value, headers)] = log_of(project)
    assert (topic, key) == ("OrderAccepted", "o-1")
    assert value == {"order_id": "o-1", "total": 12.5, "items": ["a"]}
    assert headers["ce_type"] == "OrderAccepted"
    assert headers["ce_source"] == "/services/microflow-cli"
    assert headers["ce_correlationid"] == "f-1"
    assert headers["ce_id"] == told["event"]
    assert headers["ce_id"][14] == "7"


def test_a_target_types_the_fields_and_knows_key_and_topic(project: Project) -> None:
    project.write(
        "shop.py",
        """
        from microflow import Event, on
        class OrderAccepted(Event, key="order_id", topic="orders"):
            order_id: str
            count: int
        @on(OrderAccepted)
        async def take_payment(order: OrderAccepted) -> None: ...
        """,
    )

    project.json_lines("emit", "OrderAccepted", "order_id=o-1", "count=3", "note=hello", "--app", "shop.py")

    [(topic, key, value, _)] = log_of(project)
    assert (topic, key) == ("orders", "o-1")
    assert value == {"order_id": "o-1", "count": 3, "note": "hello"}


def test_fields_that_do_not_fit_are_told_with_the_line_of_the_class(project: Project) -> None:
    told = refused(project, "OrderAccepted", "order_id=o-1", "total=much", "--app", "payments.py")

    assert told == ('✗ payments.py:4  OrderAccepted does not fit its schema:\n  total: expected a number, got "much"\n')


def test_without_a_key_it_says_how_to_give_one(project: Project) -> None:
    told = refused(project, "OrderAccepted", "order_id=o-1")

    assert "OrderAccepted needs a key" in told
    assert "--key order_id" in told


def test_a_target_whose_class_names_no_key_is_told_what_to_add(project: Project) -> None:
    project.write(
        "shop.py",
        """
        from microflow import Event, on
        class OrderAccepted(Event):
            order_id: str
        @on("OrderAccepted")
        async def take_payment(order: OrderAccepted) -> None: ...
        """,
    )

    told = refused(project, "OrderAccepted", "order_id=o-1", "--app", "shop.py")

    assert told == (
        "✗ OrderAccepted needs a key, and its class in shop.py names none: only who emits a type has to.\n"
        "  Add  --key order_id\n"
    )


def test_a_target_that_does_not_exist_is_told_in_the_words_of_emit(project: Project) -> None:
    told = refused(project, "OrderAccepted", "order_id=o-1", "--app", "paymnets.py")

    assert "Did you mean --app payments.py" in told
    assert "microflow run" not in told


def test_a_key_that_is_no_field_is_told_with_the_one_that_was_meant(project: Project) -> None:
    told = refused(project, "OrderAccepted", "order_id=o-1", "--key", "orderid")

    assert "Did you mean order_id?" in told


def test_a_type_that_the_target_does_not_know_is_told_with_the_one_that_was_meant(project: Project) -> None:
    told = refused(project, "OrderAcepted", "order_id=o-1", "--app", "payments.py")

    assert "payments.py neither handles nor emits OrderAcepted." in told
    assert "Did you mean OrderAccepted?" in told


def test_a_topic_that_is_new_is_noted_with_the_one_that_was_meant(project: Project) -> None:
    project.json_lines("emit", "OrderAccepted", "order_id=o-1", "--key", "order_id")

    ended = project.run("emit", "OrderAcepted", "order_id=o-1", "--key", "order_id")

    assert ended.returncode == 0
    assert "note: the topic OrderAcepted is new" in ended.stderr
    assert "Did you mean OrderAccepted?" in ended.stderr


@pytest.mark.parametrize("flow", ["a\nb", "x" * 2000])
def test_a_flow_that_no_service_would_read_is_refused(project: Project, flow: str) -> None:
    assert "correlationid" in refused(project, "OrderAccepted", "order_id=o-1", "--key", "order_id", "--flow", flow)


# ── files ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_file_is_one_event_a_line_and_fields_are_set_on_each(project: Project) -> None:
    project.write("events.jsonl", '{"order_id": "o-1"}\n\n{"order_id": "o-2", "total": 5}\n')

    [told] = project.json_lines("emit", "OrderAccepted", "shop=north", "--file", "events.jsonl", "--app", "payments.py")

    assert told["events"] == 2
    assert sorted((key, value["shop"]) for _, key, value, _ in log_of(project)) == [("o-1", "north"), ("o-2", "north")]


def test_events_come_from_stdin_too(project: Project) -> None:
    ended = project.run(
        "emit", "OrderAccepted", "--file", "-", "--key", "order_id", stdin='{"order_id": "o-1"}\n{"order_id": "o-2"}\n'
    )

    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.startswith("emitted 2 ")
    assert len(log_of(project)) == 2


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{'order_id': 'o-2'}", "This line is no JSON"),
        ('["o-2"]', "This line is no JSON object."),
        ('{"order_id": "o-2", "total": NaN}', "This line is no JSON"),
        ('{"order_id": "o-2", "total": "much"}', "OrderAccepted does not fit its schema"),
        ('{"total": 3}', "order_id: expected a value, got nothing"),
        ('{"order_id": "\\ud800"}', "half a character"),
        (f'{{"order_id": "o-2", "total": {"1" * 5000}}}', "a number has more than 4300 digits"),
    ],
)
def test_a_mistake_in_one_line_publishes_nothing_and_names_the_line(project: Project, line: str, said: str) -> None:
    project.write("events.jsonl", f'{{"order_id": "o-1"}}\n{line}\n')

    told = refused(project, "OrderAccepted", "--file", "events.jsonl", "--app", "payments.py")

    assert "events.jsonl:2  " in told
    assert said in told
    assert "Nothing was published." in told


def test_a_line_that_is_too_large_publishes_nothing_and_is_named(project: Project) -> None:
    small, large = '{"order_id": "o-1"}\n', json.dumps({"order_id": "o-2", "note": "x" * 2_000_000})
    project.write("events.jsonl", f"{small}{large}\n{small}{large}\n")

    told = refused(project, "OrderAccepted", "--file", "events.jsonl", "--key", "order_id")

    assert told.startswith("✗ events.jsonl:2  OrderAccepted is too large: its record has 2,000,")
    assert "the log takes 1,047,564" in told
    assert "Nothing was published." in told


def test_an_event_of_the_largest_size_is_taken(project: Project) -> None:
    project.write("events.jsonl", json.dumps({"order_id": "o-1", "note": "x" * 1_047_000}))

    [told] = project.json_lines("emit", "OrderAccepted", "--file", "events.jsonl", "--key", "order_id")

    assert told["events"] == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ["order_id=\udcff", "--key", "order_id"],
        ["order_id=o-1", "--key", "\udcff"],
        ["order_id=o-1", "--flow", "\udcff"],
    ],
)
def test_bytes_that_are_no_text_are_refused(project: Project, arguments: list[str]) -> None:
    told = refused(project, "OrderAccepted", *arguments)

    assert "\\xff is no text: it holds bytes that are not UTF-8." in told


def test_half_a_character_is_refused(project: Project) -> None:
    told = refused(project, "OrderAccepted", "order_id=o-1", 'note:="\\ud800"', "--key", "order_id")

    assert "\\ud800 is half a character" in told


def test_a_big_file_shows_a_line_for_every_tenth(project: Project) -> None:
    project.write("events.jsonl", "".join(f'{{"order_id": "o-{number}"}}\n' for number in range(5000)))

    ended = project.run("emit", "OrderAccepted", "--file", "events.jsonl", "--key", "order_id")

    lines = ended.stdout.splitlines()
    assert [line.rpartition("· ")[2] for line in lines[:-1]] == [f"{share} %" for share in range(10, 101, 10)]
    assert lines[-1].startswith("emitted 5000 ")


def test_a_file_that_does_not_exist_is_told(project: Project) -> None:
    assert "evnts.jsonl cannot be read" in refused(project, "OrderAccepted", "--file", "evnts.jsonl", "--key", "a")


# ── following ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_follow_shows_the_flow_with_what_caused_what_and_ends_when_it_is_quiet(project: Project) -> None:
    service = project.start("run", "payments.py")
    service.until_ready()

    ended = project.run("emit", "OrderAccepted", "order_id=o-1", "--app", "payments.py", "--follow")

    _, first, second, quiet = ended.stdout.splitlines()
    assert "● OrderAccepted  o-1  from microflow-cli" in first
    assert "    ● PaymentReceived  o-1  from payments" in second
    assert quiet == "quiet for 5 s: 2 events"


# ── the parts ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_field_may_hold_what_looks_like_a_separator() -> None:
    assert read_fields(["a=b=c", 'd:="x=y"', "e="]) == {"a": "b=c", "d": "x=y", "e": ""}


@pytest.mark.parametrize("argument", ["order_id", "=3", "a:=", "a:={", "a:=NaN"])
def test_what_sets_no_field_is_refused(argument: str) -> None:
    with pytest.raises(ContractError):
        read_fields([argument])


def test_a_key_of_several_fields_is_a_json_array_as_in_events() -> None:
    form = Form("OrderAccepted", "orders", key=("shop", "order_id"), key_is_tuple=True)

    assert form.key_of({"shop": "ünited", "order_id": 7}) == '["ünited","7"]'


@pytest.mark.parametrize("value", [True, None, 1.5, ["a"]])
def test_what_cannot_be_a_key_is_refused(value: Any) -> None:
    with pytest.raises(ContractError, match="cannot be one"):
        Form("OrderAccepted", "orders", key=("order_id",)).key_of({"order_id": value})


def test_a_field_that_is_set_twice_is_refused() -> None:
    with pytest.raises(ContractError, match="total is set twice"):
        read_fields(["total=1", "order_id=o-1", "total:=2"])


def test_an_empty_key_is_refused(project: Project) -> None:
    assert "order_id is the key of OrderAccepted, and it is empty." in refused(
        project, "OrderAccepted", "order_id=", "--key", "order_id"
    )
    assert "OrderAccepted needs a key" in refused(project, "OrderAccepted", "order_id=o-1", "--key", "")
