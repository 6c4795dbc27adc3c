"""`microflow demo`: five real processes, and orders that all end."""

from __future__ import annotations

import json
import signal
import subprocess
from typing import Any

from tests.cli.projects import COMMAND, Project, clean_environment

LONGEST = 110.0


def the_demo(project: Project, *arguments: str) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """What a demo printed before its summary, and the summary; it must have ended with 0."""
    ended = subprocess.run(
        [*COMMAND, "demo", *arguments],
        cwd=project.folder,
        env=clean_environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=LONGEST,
        check=False,
    )
    lines = [json.loads(line) for line in ended.stdout.splitlines()]
    assert ended.returncode == 0, (ended.stderr, lines[-5:])
    return lines[:-1], lines[-1]


def test_every_order_ends_and_the_demo_with_it(project: Project) -> None:
    lines, summary = the_demo(project, "--orders", "20", "--rate", "20")

    assert summary["orders"] == 20
    assert sum(summary["endings"].values()) == 20
    assert (summary["open"], summary["ended_twice"]) == ([], [])
    assert summary["endings"].keys() == {"OrderCompleted", "OrderCancelled", "OrderRejected"}
    assert {line["service"] for line in lines if "outcome" in line} == {
        "orders",
        "payments",
        "inventory",
        "shipping",
        "customers",
    }
    assert not (project.folder / ".microflow").exists(), "nothing is kept"


def test_every_order_ends_once_although_services_are_killed(project: Project) -> None:
    _, summary = the_demo(project, "--orders", "16", "--rate", "2", "--faults", "--seed", "3")

    assert summary["faults"].get("kill -9", 0) >= 1
    assert sum(summary["endings"].values()) == 16
    assert (summary["open"], summary["ended_twice"]) == ([], [])


def test_without_a_number_it_goes_on_until_it_is_interrupted(project: Project) -> None:
    demo = project.start("demo", "--rate", "20")
    demo.until(lambda: any(line["outcome"] == "done" for line in demo.reports()))

    demo.send(signal.SIGINT)

    assert demo.end() == 0
    assert demo.lines()[-1]["message"] == "summary"
