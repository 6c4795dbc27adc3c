"""`microflow handlers backfill`, as it is typed: what it says, and what the service makes of it (rule 12)."""

from __future__ import annotations

import shutil
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from servers.finding import Found
from tests.cli.projects import Child, Project

FIRST = """
from microflow import Context, Event, on

class OrderAccepted(Event, key="order_id"):
    order_id: str
    number: int = 0

@on("OrderAccepted")
async def take_payment(order: OrderAccepted) -> None:
    pass
"""
SECOND = f"""{FIRST}
@on("OrderAccepted")
async def send_bill(order: OrderAccepted) -> None:
    pass
"""


@dataclass
class Shop:
    """A project whose service has handled nine events, three of each key, before a handler was added to it."""

    project: Project
    where: tuple[str, ...] = ()

    def emit(self) -> None:
        lines = [f'{{"order_id": "o-{key}", "number": {number}}}' for number in range(3) for key in range(3)]
        self.project.write("events.jsonl", "\n".join(lines))
        words = ("emit", "OrderAccepted", "--file", "events.jsonl", "--app", "payments.py", *self.where[:2])
        done = self.project.run(*words)
        assert done.returncode == 0, done.stderr

    def start(self) -> Child:
        service = self.project.start("run", "payments.py", "--json", *self.where)
        service.until_ready()
        return service

    def backfill(self, *arguments: str) -> tuple[int, str, str]:
        """What the command ends with, and says."""
        ended = self.project.run(*self._words, *arguments)
        return ended.returncode, ended.stdout, ended.stderr

    def backfilled(self, *arguments: str) -> dict[str, Any]:
        """The one line that it prints with `--json`."""
        [fields] = self.project.json_lines(*self._words, *arguments)
        return fields

    @property
    def _words(self) -> tuple[str, ...]:
        return ("handlers", "backfill", "send_bill", "--service", "payments", *self.where)

    def begin(self) -> None:
        """Let the first version handle nine events, and then have the second one."""
        self.project.write("payments.py", FIRST)
        self.emit()
        service = self.start()
        service.until(lambda: len(service.reports()) == 9)
        assert service.stop() == 0
        self.project.write("payments.py", SECOND)


def bills(service: Child) -> dict[str, list[int]]:
    """The offsets of the records that send_bill has handled, by key, in the order in which it did."""
    found: dict[str, list[int]] = {}
    for report in service.reports():
        if report["handler"] == "send_bill" and report["outcome"] == "done":
            found.setdefault(report["key"], []).append(report["offset"])
    return found


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a shop whose new handler has been seen, to be copied."""
    project = Project(tmp_path_factory.mktemp("begun"))
    shop = Shop(project)
    try:
        shop.begin()
        assert shop.start().stop() == 0
    finally:
        for child in project.children:
            child.kill()
    return project.folder


@pytest.fixture
def shop(project: Project, begun: Path) -> Shop:
    shutil.copytree(begun, project.folder, dirs_exist_ok=True)
    return Shop(project)


def test_nothing_is_done_before_it_is_said_and_then_the_next_start_handles_it(shop: Shop) -> None:
    code, out, err = shop.backfill()
    assert (code, err) == (0, "")
    assert out.splitlines() == [
        "payments would read again for send_bill:",
        "  OrderAccepted  9 records",
        "What of that it has not had would be handed over to it. Nothing was done. To do it, add  --yes",
    ]
    assert shop.backfilled()["topics"] == {"OrderAccepted": 9}

    code, out, err = shop.backfill("--yes")
    assert (code, err) == (0, "")
    assert out == "9 events are handed over to send_bill: payments begins at once, or when it is started.\n"
    service = shop.start()
    service.until(lambda: len(service.reports()) == 9)

    assert {report["handler"] for report in service.reports()} == {"send_bill"}
    assert all(each == sorted(each) for each in bills(service).values())
    again = shop.backfilled("--yes", "--out-of-order")
    assert (again["handed_over"], again["known"]) == (0, 9)


def test_a_running_service_begins_at_once_after_it_was_said_that_order_does_not_matter(shop: Shop) -> None:
    service = shop.start()

    code, out, err = shop.backfill("--yes")
    assert (code, out) == (1, "")
    assert err.splitlines() == [
        "✗ The order of keys would not be kept: send_bill is at work, and handles newer events of a key before older "
        "ones.",
        "  Nothing was done.",
        "  To do it all the same, add  --out-of-order",
    ]
    assert "To do it, add  --out-of-order --yes" in shop.backfill()[1]
    assert shop.backfilled("--yes", "--out-of-order")["handed_over"] == 9
    service.until(lambda: len(service.reports()) == 9)


def test_it_stops_at_half_of_what_may_wait_and_says_what_to_type(shop: Shop) -> None:
    """Rule 22."""
    few = {"MICROFLOW_PARKED_PER_HANDLER": "8"}
    words = ("handlers", "backfill", "send_bill", "payments.py", "--yes")
    stopped = shop.project.run(*words, environment=few)
    assert stopped.returncode == 1
    typed = next(line for line in stopped.stderr.splitlines() if "go on:" in line).split("  ")[-1].split()
    assert typed == ["microflow", "handlers", "backfill", "send_bill", "payments.py", "--yes", "--out-of-order"]

    service = shop.start()
    service.until(lambda: len(service.reports()) == 4)
    done = shop.project.run(*typed[1:], environment=few)

    assert done.returncode == 0, done.stderr
    service.until(lambda: len(service.reports()) == 9)


def test_what_cannot_be_done_is_told(shop: Shop) -> None:
    shop.project.write("payments.py", SECOND.replace("def take_payment", "def audit"))
    shop.project.run("emit", "Other", "n=1", "--key", "n", "--log", "local:other.log")
    named = ("--service", "payments")

    for arguments, said, code in (
        (("send_bil", *named), "Did you mean send_bill?", 2),
        (("audit", "payments.py"), "audit of payments has not run yet.", 2),
        (("send_bill", "--since", "soon"), "--since soon: that is no instant.", 2),
        (("send_bill", *named, "--log", "local:no.log"), "There is no local log no.log.", 3),
        (("send_bill", *named, "--log", "127.0.0.1:1"), "Kafka is not reachable at 127.0.0.1:1", 3),
        (("send_bill", *named, "--log", "local:other.log"), "belongs to another log than", 3),
        (("send_bill", *named, "--database", "postgresql://127.0.0.1:1/x"), "127.0.0.1:1", 3),
    ):
        ended = shop.project.run("handlers", "backfill", *arguments, "--yes")
        assert said in ended.stderr
        assert ended.returncode == code, arguments


def test_nothing_to_backfill_is_no_failure(shop: Shop) -> None:
    ended = shop.project.run("handlers", "backfill", "take_payment", "--yes")

    assert ended.returncode == 0, ended.stderr
    assert ended.stdout == (
        "Nothing to backfill: of take_payment's topics the log holds nothing from before it began to read them.\n"
    )


def test_on_kafka_and_postgresql_the_handler_alone_is_given_everything_once_and_in_order(
    project: Project, kafka: Found, postgres_url: str
) -> None:
    topic = f"orders-{uuid.uuid4().hex[:12]}"
    project.write("pyproject.toml", f'[tool.microflow.topics]\nOrderAccepted = "{topic}"\n')
    shop = Shop(project, ("--kafka", kafka.address, "--database", postgres_url))
    project.write("payments.py", FIRST)
    made = project.run("topics", "apply", "payments.py", "--yes", "--partitions", f"{topic}=3", *shop.where[:2])
    assert made.returncode == 0, made.stderr
    shop.begin()
    service = shop.start()

    assert shop.backfilled("--yes", "--out-of-order")["handed_over"] == 9
    service.until(lambda: len(service.reports()) == 9)
    again = shop.backfilled("--yes", "--out-of-order")

    assert (again["handed_over"], again["known"]) == (0, 9)
    assert len(bills(service)) == 3
    assert all(each == sorted(each) and len(each) == 3 for each in bills(service).values())
    assert {report["handler"] for report in service.reports()} == {"send_bill"}
    assert service.stop() == 0
