"""`microflow demo`: five real processes, and orders that all end."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
from typing import Any

import asyncpg

from servers.finding import Found
from servers.kafka import Kafka
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
    assert "(nothing is installed or kept)" in lines[0]["message"]
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


def test_the_same_services_run_on_kafka_and_postgresql_and_leave_no_database(project: Project, postgres: Found) -> None:
    with Kafka() as kafka:
        on = ["--log", kafka.address(), "--database", postgres.address]

        lines, summary = the_demo(project, "--orders", "10", "--rate", "10", "--processes", "2", *on)
        again = project.run("demo", "--orders", "1", *on)

    assert sum(summary["endings"].values()) == 10
    assert (summary["open"], summary["ended_twice"]) == ([], [])
    assert "(nothing is installed, and nothing but topics on that Kafka is kept)" in lines[0]["message"]
    assert asyncio.run(demo_databases(postgres.address)) == []
    assert again.returncode == 2
    assert "✗ The topics of the order saga are in use on Kafka" in again.stderr


async def demo_databases(url: str) -> list[str]:
    connection = await asyncpg.connect(url)
    try:
        rows = await connection.fetch("select datname from pg_database where datname like 'microflow_demo_%'")
        return [row["datname"] for row in rows]
    finally:
        await connection.close()
