"""`microflow outbox`: what waits is shown with what keeps it, and what will never be published can be given up."""

from __future__ import annotations

import asyncio
import base64
import json
import sqlite3
import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from typing import Any

import psycopg
import pytest
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from microflow import Event, Outbox
from servers.finding import Found
from tests.cli.projects import Child, Project

LARGE = 2_000_000


class OrderPlaced(Event, key="order_id"):
    order_id: str
    number: int = 0
    note: str = ""


@dataclass
class Web:
    """A program that is no service, with an outbox in a database, and the verbs that look into it."""

    project: Project
    url: str
    topics: dict[str, str] = field(default_factory=dict)

    @property
    def database(self) -> tuple[str, str]:
        return ("--database", self.url)

    def run(self, *arguments: str) -> tuple[int, str, str]:
        """A verb of the outbox, to its end: exit code, stdout, stderr."""
        ended = self.project.run("outbox", *arguments, *self.database)
        return ended.returncode, ended.stdout, ended.stderr

    def fields(self, *arguments: str) -> dict[str, Any]:
        _, out, err = self.run(*arguments, "--json")
        assert not err, err
        fields: dict[str, Any] = json.loads(out)
        return fields

    def relay(self, *arguments: str) -> Child:
        relay = self.project.start("relay", *self.database, *arguments)
        relay.until_ready()
        return relay

    def append(self, *events: OrderPlaced) -> None:
        with self._connection() as connection:
            Outbox("web", topics=self.topics).append_sync(connection, *events)
            connection.commit()

    def enlarge(self, position: int) -> None:
        """As if the log's limit had been lowered after it was emitted."""
        table, mark = ("microflow_outbox", "?") if self.url.startswith("sqlite") else ("microflow.outbox", "%s")
        with self._connection() as connection:
            connection.execute(f"update {table} set value = {mark} where position = {mark}", (bytes(LARGE), position))
            connection.commit()

    @contextmanager
    def _connection(self) -> Iterator[Any]:
        if self.url.startswith("sqlite"):
            opened: Any = sqlite3.connect(self.project.folder / "web.db", timeout=10)
        else:
            opened = psycopg.connect(self.url)
        with closing(opened) as connection:
            yield connection


@pytest.fixture(params=["SQLite", "PostgreSQL"])
def web(request: pytest.FixtureRequest, project: Project) -> Web:
    """A program whose outbox has its tables and nothing in it."""
    url = "sqlite:///web.db" if request.param == "SQLite" else str(request.getfixturevalue("postgres_url"))
    web = Web(project, url)
    assert web.relay().stop() == 0
    return web


@pytest.fixture
def stuck(web: Web) -> Web:
    """The same with an event that the log will never take, two others of its key behind it and one of another key."""
    web.append(*(OrderPlaced(order_id="o-1", number=number) for number in range(3)), OrderPlaced(order_id="o-2"))
    web.enlarge(1)
    return web


def test_an_empty_outbox_says_so(web: Web) -> None:
    code, out, err = web.run("status")

    assert code == 0, err
    [line] = out.splitlines()
    assert line.endswith(" · nothing waits")


def test_what_is_too_large_is_named_with_what_waits_behind_it_and_what_to_type(stuck: Web) -> None:
    """Failure 60."""
    code, out, _ = stuck.run("status")
    fields = stuck.fields("status")

    lines = out.splitlines()
    assert code == 1
    assert " · 4 pending · oldest " in lines[0]
    assert lines[1].startswith("  OrderPlaced  4 · oldest ")
    assert lines[2].startswith("    ✗ event 1 (key o-1) has 2,000,")
    assert lines[2].endswith("more than the topic takes. 2 events of its key wait behind it.")
    assert "microflow outbox skip 1 --database " in lines[3]
    [topic] = fields["topics"]
    assert (fields["pending"], topic["pending"], topic["missing"]) == (4, 4, False)
    assert [(each["position"], each["behind"]) for each in topic["too_large"]] == [(1, 2)]


def test_a_running_relay_goes_on_behind_an_event_that_was_given_up_and_kept(stuck: Web) -> None:
    """Failure 60: its key is blocked until somebody decides, and no other is."""
    relay = stuck.relay()
    relay.until(lambda: "microflow outbox skip 1" in relay.stderr + relay.stdout)
    relay.until(lambda: '"outbox":3' in relay.stdout)
    kept = stuck.project.folder / "skipped-events.jsonl"

    _, shown, _ = stuck.run("skip", "1")
    assert "event 1 for OrderPlaced: OrderPlaced " in shown
    assert "Nothing was done. 2 events of its key wait behind it." in shown
    assert not kept.exists()
    assert stuck.fields("status")["pending"] == 3

    _, done, _ = stuck.run("skip", "1", "--yes")
    assert "Given up. All its bytes are in skipped-events.jsonl. 2 events of its key are published next." in done
    stuck.append(OrderPlaced(order_id="o-3"))
    relay.until(lambda: '"outbox":0' in relay.stdout)

    assert relay.stop() == 0
    saved = json.loads(kept.read_text())
    assert (saved["position"], saved["type"], saved["key"]) == (1, "OrderPlaced", "o-1")
    assert base64.b64decode(saved["value_base64"]) == bytes(LARGE)
    headers = {name: base64.b64decode(value) for name, value in saved["headers_base64"]}
    assert headers["ce_source"] == b"/services/web"


def test_an_event_that_cannot_be_kept_is_not_given_up(stuck: Web) -> None:
    code, _, told = stuck.run("skip", "1", "--yes", "--save", "nowhere/lost.jsonl")

    assert code == 2
    assert "Event 1 cannot be kept in nowhere/lost.jsonl: No such file or directory." in told
    assert stuck.fields("status")["pending"] == 4


def test_an_event_that_is_not_there_is_not_given_up(stuck: Web) -> None:
    code, _, told = stuck.run("skip", "77", "--yes")

    assert code == 2
    assert "There is no event 77 in the outbox" in told
    assert stuck.fields("status")["pending"] == 4


def test_what_waits_is_shown_while_the_log_is_away(stuck: Web) -> None:
    """Then, of all times, somebody looks."""
    code, out, told = stuck.run("status", "--kafka", "127.0.0.1:1")

    assert code == 3
    assert " · 4 pending · oldest " in out
    assert "  OrderPlaced  4 · oldest " in out
    assert "127.0.0.1:1" in told


def test_whose_outbox_has_to_be_said(project: Project) -> None:
    ended = project.run("outbox", "status")

    assert ended.returncode == 2
    assert "Whose outbox?" in ended.stderr


def test_the_outbox_of_a_service_is_named_by_its_target(project: Project) -> None:
    service = project.start("run", "payments.py")
    service.until_ready()
    service.stop()

    assert project.run("outbox", "status", "payments.py").stdout == "payments · nothing waits\n"
    assert "There is no event 7 in the outbox" in project.run("outbox", "skip", "7", "payments.py").stderr


def test_a_database_that_is_not_there_is_not_made(project: Project) -> None:
    ended = project.run("outbox", "status", "--database", "sqlite:///wbe.db")
    of_service = project.run("outbox", "skip", "1", "--service", "paymnets")

    assert ended.returncode == of_service.returncode == 2
    assert "There is no database wbe.db." in ended.stderr
    assert "There is no database of paymnets" in of_service.stderr
    assert not (project.folder / "wbe.db").exists()


async def make_topic(servers: str, name: str, **settings: str) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=servers)
    await admin.start()
    try:
        response = await admin.create_topics([NewTopic(name, 1, 1, topic_configs=settings)])
        assert response.topic_errors[0][1] == 0, response
    finally:
        await admin.close()


def test_a_topic_of_kafka_with_a_low_limit_of_its_own_and_one_that_is_missing_are_told_apart(
    project: Project, postgres_url: str, kafka: Found
) -> None:
    mark = uuid.uuid4().hex[:12]
    small, missing = f"small-{mark}", f"missing-{mark}"
    asyncio.run(make_topic(kafka.address, small, **{"max.message.bytes": "20000"}))
    web = Web(project, postgres_url, {"OrderPlaced": small})
    relay = web.relay("--kafka", kafka.address)
    web.append(OrderPlaced(order_id="o-1", note="x" * 50_000), OrderPlaced(order_id="o-1"), OrderPlaced(order_id="o-2"))
    web.topics["OrderPlaced"] = missing
    web.append(OrderPlaced(order_id="o-1"))
    relay.until(lambda: "microflow outbox skip 1" in relay.stderr + relay.stdout)
    relay.until(lambda: '"outbox":3' in relay.stdout)

    code, out, _ = web.run("status", "--kafka", kafka.address)
    told = [line.strip() for line in out.splitlines()]
    assert code == 1
    assert any(line.startswith("✗ event 1 (key o-1) has 50,") and "1 event of its key waits" in line for line in told)
    assert f"✗ the log has no topic {missing}" in told

    web.run("skip", "1", "--yes")
    asyncio.run(make_topic(kafka.address, missing))
    relay.until(lambda: '"outbox":0' in relay.stdout)
    assert relay.stop() == 0
