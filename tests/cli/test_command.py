"""The command itself: its verbs, its help, and what asking for help must not cost."""

from __future__ import annotations

import subprocess
import sys

import click
import pytest

from microflow.cli.command import command
from tests.cli.projects import Project

HEAVY = ("pydantic", "aiokafka", "fastavro", "opentelemetry", "asyncio", "sqlite3")


def test_without_arguments_it_shows_its_verbs_and_three_examples(project: Project) -> None:
    ended = project.run()

    assert ended.returncode == 0
    for verb in ("run", "dev", "demo", "new", "emit", "relay", "dead-letters"):
        assert f"\n  {verb} " in ended.stdout
    assert ended.stdout.count("\n  microflow ") == 3 or ended.stdout.count("\n    microflow ") == 3


def test_it_says_its_version(project: Project) -> None:
    from microflow import __version__

    ended = project.run("--version")

    assert (ended.returncode, ended.stdout) == (0, f"microflow {__version__}\n")


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["emit", "--help"], ["dead-letters", "--help"]])
def test_help_imports_nothing_that_is_heavy(arguments: list[str]) -> None:
    program = (
        "import sys\nfrom microflow.cli.command import execute\n"
        f"code = execute({arguments!r})\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules], code)"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=20, check=True)

    assert ended.stdout.splitlines()[-1] == "[] 0"


def test_every_verb_that_takes_a_log_or_a_database_names_all_that_it_may_be() -> None:
    context = click.Context(command)
    told = {
        option.help
        for verb in command.list_commands(context)
        for each in _with_verbs(command.get_command(context, verb))
        for option in each.params
        if isinstance(option, click.Option) and option.name in ("kafka", "database") and verb != "demo"
    }

    assert told == {
        "The log: HOST:PORT of Kafka, local:PATH or memory:",
        "The database: postgresql://… or sqlite:///PATH",
    }


def _with_verbs(verb: click.Command | None) -> list[click.Command]:
    return [*verb.commands.values()] if isinstance(verb, click.Group) else [verb] if verb is not None else []


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("mysql://anna:secret@x/y", "postgresql://USER@HOST/NAME     or  --database sqlite:///PATH"),
        ("postgressql://x/y", "postgresql://x/y"),
        ("shop.db", "sqlite:///shop.db"),
    ],
)
def test_what_is_no_address_of_a_database_is_told_with_what_is_one(project: Project, given: str, meant: str) -> None:
    ended = project.run("relay", "--database", given)

    assert ended.returncode == 2
    assert ended.stderr.splitlines()[-1] == f"  --database {meant}"
    assert "secret" not in ended.stderr


def test_a_verb_that_does_not_exist_is_told_with_the_one_that_was_meant(project: Project) -> None:
    ended = project.run("rnu", "payments.py")

    assert ended.returncode == 2
    assert ended.stderr.splitlines()[0] == "✗ There is no microflow rnu. Did you mean run?"
    assert "microflow --help" in ended.stderr


def test_a_wrong_option_is_told_without_a_traceback(project: Project) -> None:
    ended = project.run("run", "payments.py", "--conurrency", "3")

    assert ended.returncode == 2
    assert "--concurrency" in ended.stderr
    assert "microflow run --help" in ended.stderr
    assert "Traceback" not in ended.stderr
