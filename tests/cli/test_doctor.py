"""`microflow doctor`: each problem made for real, found, and told with what to type."""

from __future__ import annotations

import json
import socket
import sqlite3
import subprocess
import sys
import time
import uuid
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any

from microflow.cli.probes.sqlite import file_system_of
from servers.finding import Found
from tests.cli.projects import LONGEST, SERVICE, Project

QUIET = {"OTEL_TRACES_EXPORTER": "none"}


def examined(
    project: Project, *arguments: str, code: int = 0, environment: dict[str, str] | None = None
) -> list[dict[str, Any]]:
    """The findings; the last line counts them."""
    ended = project.run("doctor", *arguments, "--json", environment=environment or QUIET)
    assert ended.returncode == code, ended.stdout + ended.stderr
    return [json.loads(line) for line in ended.stdout.splitlines()]


def found(findings: list[dict[str, Any]], level: str) -> list[tuple[str, str]]:
    """What was found of a level, each with its fix."""
    return [(each["message"], each["fix"]) for each in findings if each.get("level") == level]


def test_where_all_is_well_it_says_so_and_changes_nothing(project: Project) -> None:
    ended = project.run("doctor", "payments.py", environment=QUIET)

    assert ended.returncode == 0
    assert ended.stdout.splitlines()[-1] == "all is well"
    assert " ✔ payments: payments.py loads in " in ended.stdout
    assert " ✔ local log .microflow/log.db (not made yet)" in ended.stdout
    assert not (project.folder / ".microflow").exists()


def test_without_a_target_it_looks_at_what_is_there(project: Project) -> None:
    assert {finding.get("subject") for finding in examined(project)} >= {"python", "log", "traces"}


def test_a_service_that_runs_is_told_with_what_waits_for_it(project: Project) -> None:
    service = project.start("run", "payments.py")
    service.until_ready()
    project.json_lines("emit", "OrderAccepted", "order_id=o-1", "--app", "payments.py")
    service.until(service.reports)
    service.stop()
    for number in range(3):
        project.json_lines("emit", "OrderAccepted", f"order_id=o-{number}", "--app", "payments.py")

    ended = project.run("doctor", "payments.py", environment=QUIET)

    assert "group payments · 0 members · up to 3 records to handle in 6 partitions" in ended.stdout
    assert "inbox 1 claims" in ended.stdout


def test_a_service_that_cannot_be_loaded_is_a_problem_and_hides_no_other_one(project: Project) -> None:
    project.write("broken.py", SERVICE.replace("retry=", "rerty="))

    findings = examined(project, "broken.py", "payments.py", code=1)

    [(text, fix)] = found(findings, "problem")
    assert "@on has an unknown keyword: rerty." in text
    assert fix == "Did you mean retry?"
    assert any(finding.get("subject") == "database of payments" for finding in findings)
    assert findings[-1] == {"message": "examined", "problems": 1, "warnings": 0}


def test_topics_of_one_reader_with_different_counts_are_a_warning_with_the_command_to_paste(project: Project) -> None:
    project.write(
        "shop.py",
        """
        from microflow import Event, on

        class OrderPlaced(Event):
            order_id: str

        @on("OrderPlaced")
        async def note(order: OrderPlaced) -> None: ...

        @on("OrderPaid")
        async def note_payment(order: OrderPlaced) -> None: ...
        """,
    )
    project.json_lines("topics", "apply", "shop.py", "--partitions", "OrderPlaced=6", "--partitions", "OrderPaid=3")

    [(text, fix)] = found(examined(project, "shop.py"), "warning")

    assert text == (
        "topic OrderPaid has 3 partitions, partner topic OrderPlaced has 6: one key's events may go to different "
        "processes"
    )
    assert fix == "microflow topics apply shop.py --partitions OrderPaid=6 --yes"
    project.json_lines(*fix.removeprefix("microflow ").split())
    assert found(examined(project, "shop.py"), "warning") == []


def test_topics_that_a_service_can_do_without_are_warnings_and_those_that_it_cannot_are_problems(
    project: Project, kafka: Found
) -> None:
    """Rule 23: a missing consumed topic is a warning, a missing emitted one stops the start; dead letters need none."""
    unique = uuid.uuid4().hex
    source = f"""
        from microflow import Event, Service, on

        class Ordered(Event, topic="ordered-{unique}"):
            order_id: str

        class Paid(Event, topic="paid-{unique}"):
            order_id: str

        @on(Ordered)
        async def pay(order: Ordered) -> RETURNS: ...

        service = Service("payments-{unique}")
        """
    project.write("payments.py", source.replace("RETURNS", "None"))
    project.write("emitting.py", source.replace("RETURNS", "Paid"))
    on_kafka = QUIET | {"MICROFLOW_KAFKA": kafka.address}

    reads = examined(project, "payments.py", environment=on_kafka)
    emits = examined(project, "emitting.py", code=1, environment=on_kafka)

    read = f"topic ordered-{unique}, which payments-{unique} reads, does not exist yet"
    dead = f"topic dlq-payments-{unique} does not exist: payments-{unique}'s dead letters are kept in its database only"
    written = f"topic paid-{unique} does not exist: payments-{unique} cannot start without it"
    assert found(reads, "problem") == []
    assert found(reads, "warning") == [(each, "microflow topics apply payments.py") for each in (read, dead)]
    assert found(emits, "problem") == [(written, "microflow topics apply emitting.py")]


def test_a_database_of_another_log_is_a_problem(project: Project) -> None:
    service = project.start("run", "payments.py")
    service.until_ready()
    service.stop()
    project.json_lines("emit", "OrderAccepted", "order_id=o-1", "--key", "order_id", "--log", "local:other.db")

    [(text, _)] = found(examined(project, "payments.py", "--log", "local:other.db", code=1), "problem")

    assert text.startswith("payments refuses to start: its database belongs to the log ")


def test_an_outbox_that_nobody_relays_is_a_warning(project: Project) -> None:
    project.json_lines("db", "migrate", "payments.py")
    longer = (time.time() - timedelta(minutes=5).total_seconds()) * 1_000_000
    with closing(sqlite3.connect(project.folder / ".microflow" / "payments.db")) as connection, connection:
        connection.execute(
            "insert into microflow_outbox (service, topic, headers, created_at) values ('web', 'orders', x'', ?)",
            (int(longer),),
        )

    [(text, fix)] = found(examined(project, "payments.py"), "warning")

    assert text.startswith("payments: 1 events wait in the outbox, one for longer than a minute: nobody relays them")
    assert fix.startswith("microflow outbox status --service payments ")
    assert fix.endswith("microflow run payments.py")


def test_records_that_are_gone_before_they_were_read_are_a_problem(project: Project) -> None:
    service = project.start("run", "payments.py")
    service.until_ready()
    project.json_lines("emit", "OrderAccepted", "order_id=o-1", "--app", "payments.py")
    service.until(service.reports)
    service.stop()
    with closing(sqlite3.connect(project.folder / ".microflow" / "log.db")) as connection, connection:
        connection.execute("update microflow_log_partitions set beginning = ending + 5, ending = ending + 5")

    problems = found(examined(project, "payments.py", code=1), "problem")

    assert len(problems) == 6
    assert "are gone from the log, and payments has not read them" in problems[0][0]


def test_migrations_that_a_start_would_not_run_are_a_problem(project: Project) -> None:
    project.write(
        "payments.py",
        f"from microflow import Service\n{SERVICE}\nservice = Service('payments', tables='payments.sql')\n",
    )
    project.write("payments.sql", "create table payments (order_id text primary key);")

    findings = examined(project, "payments.py", code=1, environment=QUIET | {"MICROFLOW_MIGRATE": "never"})

    [(text, fix)] = found(findings, "problem")
    assert text.startswith("payments: migrations to be run (a start does not run them): 0001_tables, ")
    assert text.endswith(", payments")
    assert fix == "microflow db migrate payments.py"


def test_workers_on_an_older_sqlite_are_a_warning(project: Project) -> None:
    findings = examined(project, "payments.py", environment=QUIET | {"MICROFLOW_WORKERS": "2"})

    warnings = found(findings, "warning")
    assert bool(warnings) == (sqlite3.sqlite_version_info < (3, 51, 3))
    assert all("2 workers will share it" in text for text, _ in warnings)


def test_a_file_on_a_network_file_system_is_recognised(tmp_path: Path) -> None:
    mounts = f"overlay / overlay rw 0 0\nserver:/export {tmp_path} nfs4 rw 0 0\ntmpfs /tmpfs tmpfs rw 0 0\n"

    assert file_system_of(tmp_path / "shop" / "payments.db", mounts=mounts) == "nfs4"
    assert file_system_of(Path("/srv/payments.db"), mounts=mounts) == "overlay"


def test_traces_that_nobody_takes_are_a_warning_and_a_listener_is_noticed(project: Project) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{listener.getsockname()[1]}"
        environment = {"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint}

        [(text, fix)] = found(examined(project, environment=environment), "warning")
        listener.listen()
        heard = examined(project, environment=environment)

    assert text == f"traces: nothing listens on {endpoint} (connection refused)"
    assert fix.startswith("docker compose up -d jaeger")
    assert found(heard, "warning") == []


def test_what_does_not_answer_is_given_up_after_three_seconds(project: Project) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(1)
        # A backlog that is full: further connections are neither taken nor refused.
        filling = [socket.socket() for _ in range(4)]
        for each in filling:
            each.setblocking(False)
            each.connect_ex(listener.getsockname())
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        environment = {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://{address}"}

        began = time.monotonic()
        [(text, _)] = found(examined(project, code=1, environment=environment), "problem")
        took = time.monotonic() - began

        assert text == "traces did not answer within 3 s"
        assert took < LONGEST
        for each in filling:
            each.close()


def test_a_namesake_in_the_same_place_is_a_problem(project: Project) -> None:
    pretended = project.folder / "site" / "microflow-0.2.0.dist-info"
    pretended.mkdir(parents=True)
    (pretended / "METADATA").write_text("Metadata-Version: 2.1\nName: microflow\nVersion: 0.2.0\n")

    findings = examined(project, code=1, environment=QUIET | {"PYTHONPATH": str(pretended.parent)})

    [(text, fix)] = found(findings, "problem")
    assert text.startswith("the package microflow 0.2.0, which is somebody else's, is installed too")
    assert fix == "pip uninstall microflow && pip install --force-reinstall microworkflow"


def test_probes_that_are_not_asked_for_import_nothing_heavy() -> None:
    loaded = subprocess.run(
        [sys.executable, "-c", "import sys, microflow.cli.doctor; print('pydantic' in sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
    )

    assert loaded.stdout.strip() == "False"
