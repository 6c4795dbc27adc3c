"""`microflow relay`: the outbox of a program that is no service reaches the log."""

from __future__ import annotations

import subprocess

from tests.cli.projects import COMMAND, Project, clean_environment
from tests.cli.test_emit import log_of

WEB = """
import sqlite3
from microflow import Event, Outbox

class OrderAccepted(Event, key="order_id"):
    order_id: str

connection = sqlite3.connect("web.db")
Outbox("web").append_sync(connection, OrderAccepted(order_id="o-1"))
connection.commit()
"""


def test_what_a_program_appends_is_published_in_a_database_that_the_relay_has_made(project: Project) -> None:
    relay = project.start("relay", "--database", "sqlite:///web.db")
    relay.until_ready()
    subprocess.run([COMMAND[0], "-c", WEB], cwd=project.folder, env=clean_environment(), check=True, timeout=20)
    relay.until(lambda: '"published"' in relay.stdout)

    assert relay.stop() == 0

    [(topic, key, _, headers)] = log_of(project)
    assert (topic, key, headers["ce_source"]) == ("OrderAccepted", "o-1", "/services/web")
    assert (relay.lines()[1]["published"], relay.lines()[1]["outbox"]) == (1, 0)


def test_it_asks_whose_outbox_it_is(project: Project) -> None:
    ended = project.run("relay")

    assert ended.returncode == 2
    assert "--database sqlite:///web.db" in ended.stderr


def test_a_database_of_another_log_is_refused(project: Project) -> None:
    relay = project.start("relay", "--database", "sqlite:///web.db")
    relay.until_ready()
    relay.stop()

    ended = project.run("relay", "--database", "sqlite:///web.db", "--log", "local:other.db")

    assert ended.returncode == 3
    assert "belongs to the log" in ended.stderr
