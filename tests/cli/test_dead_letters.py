"""`microflow dead-letters`: what was given up is listed, shown and given back."""

from __future__ import annotations

import json

import pytest

from tests.cli.projects import SERVICE, Project

MENDED = SERVICE.replace("> 100", "> 1_000_000")


@pytest.fixture
def failed(project: Project) -> Project:
    """A project whose service has given up two of three events, and was stopped."""
    service = project.start("run", "payments.py")
    service.until_ready()
    for number, total in enumerate(["101", "1", "102"], 1):
        project.json_lines("emit", "OrderAccepted", f"order_id=o-{number}", f"total={total}", "--app", "payments.py")
    service.until(lambda: len(service.reports()) == 3)
    service.stop()
    return project


def test_each_is_a_line_with_its_handler_type_key_error_and_tries(failed: Project) -> None:
    ended = failed.run("dead-letters", "list")

    first, second, see = ended.stdout.splitlines()
    assert first.split()[:6] == ["1", "take_payment", "OrderAccepted", "o-1", "1", "try"]
    assert first.endswith("ValueError: too much: 101")
    assert second.endswith("ValueError: too much: 102")
    assert "microflow dead-letters show 1" in see
    # The target says which service is meant; a database on a server does not.
    assert "dead-letters show 1 --service payments" in failed.run("dead-letters", "list", "payments.py").stdout


@pytest.mark.parametrize("which", [["payments.py"], ["--service", "payments"], []])
def test_the_service_is_named_by_a_target_by_its_name_or_by_its_database_alone(
    failed: Project, which: list[str]
) -> None:
    letters = failed.json_lines("dead-letters", "list", *which)

    assert [(letter["id"], letter["key"], letter["state"]) for letter in letters] == [
        (1, "o-1", "dead"),
        (2, "o-3", "dead"),
    ]


def test_one_is_shown_with_its_headers_its_value_its_error_and_the_users_frames(failed: Project) -> None:
    ended = failed.run("dead-letters", "show", "1")

    assert "  ce_type: OrderAccepted\n" in ended.stdout
    assert '  {\n    "order_id": "o-1",\n    "total": "101"\n  }\n' in ended.stdout
    assert "✗ ValueError: too much: 101" in ended.stdout
    assert 'File "payments.py", line 14, in take_payment' in ended.stdout
    assert "src/microflow" not in ended.stdout
    assert "microflow dead-letters redrive 1 --service payments --yes" in ended.stdout


def test_one_as_json_has_everything(failed: Project) -> None:
    [letter] = failed.json_lines("dead-letters", "show", "1")

    assert json.loads(letter["value"]) == {"order_id": "o-1", "total": "101"}
    assert letter["headers"]["ce_type"] == "OrderAccepted"
    assert (letter["reason"], letter["attempts"]) == ("exhausted", 1)


def test_a_redrive_does_nothing_without_yes(failed: Project) -> None:
    ended = failed.run("dead-letters", "redrive", "--all")

    assert ended.returncode == 0
    assert "2 dead letters would go back to payments. Nothing was done." in ended.stdout
    assert {letter["state"] for letter in failed.json_lines("dead-letters", "list")} == {"dead"}


def test_a_redriven_one_takes_effect_once_in_a_service_that_runs_already(failed: Project) -> None:
    failed.write("payments.py", MENDED)
    service = failed.start("run", "payments.py")
    service.until_ready()

    ended = failed.run("dead-letters", "redrive", "1", "--yes")

    assert "1 dead letter went back to payments" in ended.stdout
    service.until(service.reports)
    assert [(report["key"], report["outcome"]) for report in service.reports()] == [("o-1", "done")]
    assert [letter["id"] for letter in failed.json_lines("dead-letters", "list")] == [2]
    assert [letter["state"] for letter in failed.json_lines("dead-letters", "list", "--done")] == ["done", "dead"]


def test_more_than_twenty_are_grouped_by_what_went_wrong(project: Project) -> None:
    service = project.start("run", "payments.py")
    service.until_ready()
    project.write("events.jsonl", "".join(f'{{"order_id": "o-{each}", "total": 101}}\n' for each in range(21)))
    project.json_lines("emit", "OrderAccepted", "--file", "events.jsonl", "--app", "payments.py")
    service.until(lambda: len(service.reports()) == 21)

    lines = project.run("dead-letters", "list").stdout.splitlines()

    assert "21 x ValueError in payments.take_payment of OrderAccepted, first " in lines[0]
    assert len(project.run("dead-letters", "list", "--each").stdout.splitlines()) == 22


# ── what cannot be done ───────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["list", "--service", "paymnets"], "Did you mean --service payments?"),
        (["show", "7"], "payments has no dead letter 7."),
        (["redrive", "7"], "payments has no dead letter 7."),
        (["redrive"], "Say which"),
        (["redrive", "1", "--all"], "Say which"),
        (["list", "--handler", "take_paymnet"], "Did you mean --handler take_payment?"),
        (["redrive", "--all", "--handler", "nope"], "There is no handler nope with dead letters here."),
        (["list", "nothing.py"], "There is no nothing.py."),
        (["list", "--database", "sqlite:///x.db"], "No service has run with SQLite x.db."),
    ],
)
def test_what_cannot_be_found_is_told_with_what_there_is(failed: Project, arguments: list[str], said: str) -> None:
    ended = failed.run("dead-letters", *arguments)

    assert ended.returncode == 2
    assert said in ended.stderr
    assert "Traceback" not in ended.stderr


def test_looking_for_a_service_makes_no_database_for_it(failed: Project) -> None:
    failed.run("dead-letters", "list", "--service", "shipping")

    assert not (failed.folder / ".microflow" / "shipping.db").exists()


def test_without_any_database_it_says_where_it_looked(project: Project) -> None:
    ended = project.run("dead-letters", "list")

    assert ended.returncode == 2
    assert "No service has a database here." in ended.stderr


def test_a_service_without_dead_letters_says_so(project: Project) -> None:
    service = project.start("run", "payments.py")
    service.until_ready()

    assert project.run("dead-letters", "list").stdout == "No dead letters in payments.\n"


def test_of_several_services_one_must_be_named_to_redrive(failed: Project) -> None:
    failed.write("shop.py")
    service = failed.start("run", "shop.py")
    service.until_ready()

    ended = failed.run("dead-letters", "redrive", "--all", "--yes")

    assert ended.returncode == 2
    assert "payments, shop" in ended.stderr
