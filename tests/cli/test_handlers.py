"""`microflow handlers`: one was renamed or removed while events wait for it, from the start that this stops."""

from __future__ import annotations

import json

import pytest

from tests.cli.projects import SERVICE, Project

WAITS = "from datetime import timedelta\n" + SERVICE.replace(
    "Retry.never()", "Retry(attempts=3, first_delay=timedelta(seconds=5))"
)
RENAMED = SERVICE.replace("take_payment", "take_payments").replace("> 100", "> 1_000_000")
REMOVED = SERVICE.replace("take_payment", "send_bill")


@pytest.fixture
def waiting(project: Project) -> Project:
    """A project whose service has an event that waits for another attempt, and was stopped."""
    project.write("payments.py", WAITS)
    service = project.start("run", "payments.py")
    service.until_ready()
    project.json_lines("emit", "OrderAccepted", "order_id=o-1", "total=101", "--app", "payments.py")
    service.until(service.reports)
    service.stop()
    return project


def test_handlers_are_listed_with_what_triggers_them_and_what_waits_for_them(waiting: Project) -> None:
    [handler] = waiting.json_lines("handlers", "list")
    lines = waiting.run("handlers", "list").stdout.splitlines()

    assert handler.pop("since").endswith("Z")
    assert handler == {
        "service": "payments",
        "handler": "take_payment",
        "triggers": [{"type": "OrderAccepted", "topic": "OrderAccepted", "since": {}}],
        "waiting": 1,
        "processes": [],
    }
    assert lines[0].startswith("take_payment  OrderAccepted  since 2")
    assert lines[0].endswith("1 event waits  in no process")
    assert (
        lines[1]
        == "Nobody has take_payment. If it is gone for good:  microflow handlers retire take_payment --service payments"
    )


def test_the_embedded_log_is_no_service_where_a_service_has_moved_to_another_log(waiting: Project) -> None:
    listed = waiting.run("handlers", "list", "--json", environment={"MICROFLOW_KAFKA": "localhost:9092"})

    assert [json.loads(line)["service"] for line in listed.stdout.splitlines()] == ["payments"], listed.stderr


def test_a_running_process_is_shown_and_its_handlers_are_not_changed(waiting: Project) -> None:
    service = waiting.start("run", "payments.py")
    service.until_ready()

    assert waiting.run("handlers", "list").stdout.splitlines()[0].endswith("in 1 process")
    refused = waiting.run("handlers", "rename", "take_payment", "charge")
    assert refused.returncode == 1
    assert "The handler take_payment is at work in " in refused.stderr


def test_a_renamed_handler_stops_the_start_until_it_was_said_and_then_goes_on(waiting: Project) -> None:
    """Rule 12, from the error to the line that was typed as it says."""
    waiting.write("payments.py", RENAMED)
    stopped = waiting.run("run", "payments.py")
    assert stopped.returncode == 2
    assert "1 event waits for the handler take_payment of payments, which no process has any more." in stopped.stderr
    typed = next(line for line in stopped.stderr.splitlines() if "handlers rename" in line).split()
    assert typed == ["microflow", "handlers", "rename", "take_payment", "take_payments", "--service", "payments"]

    shown = waiting.run(*typed[1:])
    assert shown.stdout == (
        "The handler take_payment of payments would be called take_payments, and 1 event waits for it. "
        "Nothing was done. To do it, add  --yes\n"
    )
    assert [each["handler"] for each in waiting.json_lines("handlers", "list")] == ["take_payment"]
    renamed = waiting.run(*typed[1:], "--yes")
    assert renamed.stdout == (
        "The handler take_payment of payments is called take_payments now, and 1 event waits for it.\n"
    )
    service = waiting.start("run", "payments.py")
    service.until(service.reports)

    assert [(each["handler"], each["outcome"], each["attempt"]) for each in service.reports()] == [
        ("take_payments", "done", 2)
    ]


def test_a_removed_handler_is_retired_and_nothing_is_lost(waiting: Project) -> None:
    """Rule 12: only with --yes, and what waited is a dead letter."""
    waiting.write("payments.py", REMOVED)
    assert waiting.run("run", "payments.py").returncode == 2

    asked = waiting.run("handlers", "retire", "take_payment")
    assert "1 event that now waits for it would become a dead letter. Nothing was done." in asked.stdout
    done = waiting.run("handlers", "retire", "take_payment", "--yes")
    assert done.returncode == 0, done.stderr
    [letter] = waiting.json_lines("dead-letters", "list")
    assert (letter["handler"], letter["reason"], letter["attempts"]) == ("take_payment", "retired", 1)
    assert "copied" not in done.stdout
    assert "dlq-payments" in waiting.run("outbox", "status", "--service", "payments").stdout

    service = waiting.start("run", "payments.py")
    service.until_ready()
    assert [each["handler"] for each in waiting.json_lines("handlers", "list")] == ["send_bill"]


def test_a_handler_is_retired_without_copies_where_its_log_is_not_and_that_is_said(waiting: Project) -> None:
    done = waiting.run("handlers", "retire", "take_payment", "--yes", "--service", "payments", "--log", "127.0.0.1:1")

    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert done.stdout.splitlines()[-1] == (
        "Nothing of it was copied to dlq-payments: Kafka is not reachable at 127.0.0.1:1 (connection refused)."
    )
    [letter] = waiting.json_lines("dead-letters", "list")
    assert letter["reason"] == "retired"


@pytest.mark.parametrize(
    ("arguments", "said", "code"),
    [
        (["retire", "take_paymnet"], "Did you mean take_payment?", 2),
        (["rename", "take_payment", "a b"], "'a b' is no name for a handler.", 2),
        (["rename", "take_payment", "take_payment"], "take_payment and take_payment are one name.", 2),
        (["list", "--service", "paymnets"], "Did you mean --service payments?", 2),
        (["list", "--database", "sqlite:///x.db"], "No service has run with SQLite x.db.", 2),
        (["retire", "nothere"], "\n  microflow handlers list --service payments\n", 2),
    ],
)
def test_what_cannot_be_done_is_told(waiting: Project, arguments: list[str], said: str, code: int) -> None:
    ended = waiting.run("handlers", *arguments)

    assert said in ended.stderr
    assert ended.returncode == code


def test_of_several_services_in_one_database_all_are_listed_and_one_is_to_be_named_for_a_change(
    project: Project,
) -> None:
    project.write("letters.py", SERVICE.replace("take_payment", "send_letter"))
    shared = ["--database", "sqlite:///both.db"]
    service = project.start("run", "payments.py", "letters.py", *shared)
    service.until_ready()
    service.stop()

    listed = project.json_lines("handlers", "list", *shared)
    refused = project.run("handlers", "retire", "nothere", *shared)
    named = project.run("handlers", "retire", "nothere", *shared, "--service", "letters")

    assert [(each["service"], each["handler"]) for each in listed] == [
        ("letters", "send_letter"),
        ("payments", "take_payment"),
    ]
    assert refused.stderr == (
        "✗ Of which service?\n"
        "  There are several in SQLite both.db: letters, payments.\n"
        "  Add --service letters or --service payments\n"
    )
    fix = named.stderr.splitlines()[-1].strip()
    assert fix == "microflow handlers list --service letters --database sqlite:///both.db"
    assert len(project.json_lines(*fix.removeprefix("microflow ").split())) == 1
