"""`microflow run`: what it shows."""

from __future__ import annotations

import re
import subprocess

import pytest

from tests.cli.projects import COMMAND, SERVICE, SLOW, Project

CONSOLE = {"MICROFLOW_LOG_FORMAT": "console"}

REPORT_KEYS = {
    "at", "service", "handler", "outcome", "type", "event", "flow", "cause", "key", "topic", "partition", "offset",
    "attempt", "attempts", "took_ms", "emitted", "error", "where", "retry_in_ms", "diverged",
}  # fmt: skip


def test_without_a_terminal_every_line_is_json_and_every_execution_has_one(project: Project) -> None:
    service = project.start("run", "payments.py")
    service.until_ready()

    project.json_lines("emit", "OrderAccepted", "order_id=o-1", "--flow", "f-1", "--key", "order_id")
    service.until(service.reports)

    ready, [report] = service.lines()[0], service.reports()
    assert (ready["message"], ready["service"], ready["partitions"]) == ("ready", "payments", 6)
    assert ready["database"] == f"sqlite:///{project.folder}/.microflow/payments.db"
    assert ready["log"] == f"local:{project.folder}/.microflow/log.db"
    assert set(report) == REPORT_KEYS
    assert (report["service"], report["handler"], report["outcome"]) == ("payments", "take_payment", "done")
    assert (report["type"], report["flow"], report["key"], report["attempt"]) == ("OrderAccepted", "f-1", "o-1", 1)
    assert [each["type"] for each in report["emitted"]] == ["PaymentReceived"]


def test_for_a_person_there_are_two_lines_before_the_first_event_and_one_for_each_execution(project: Project) -> None:
    service = project.start("run", "payments.py", environment=CONSOLE)
    service.until_ready()

    project.json_lines("emit", "OrderAccepted", "order_id=o-1", "--app", "payments.py")
    service.until(lambda: "o-1" in service.stdout)

    header, ready, line = service.stdout.splitlines()
    assert re.fullmatch(
        r"microflow \S+ · payments · local log \.microflow/log\.db · SQLite \.microflow/payments\.db", header
    )
    assert re.fullmatch(r"ready in \S+ m?s · group payments · 1 handler · 6/6 partitions · outbox 0 pending", ready)
    assert re.fullmatch(r"\d\d:\d\d:\d\d\.\d{3} o-1 +payments\.take_payment +\d+ ms  → PaymentReceived", line)


def test_a_failure_shows_its_error_the_users_line_and_what_to_type(project: Project) -> None:
    service = project.start("run", "payments.py", environment=CONSOLE)
    service.until_ready()

    project.json_lines("emit", "OrderAccepted", "order_id=o-1", "total=101", "--app", "payments.py")
    service.until(lambda: "see" in service.stdout)

    failure, see = service.stdout.splitlines()[2:]
    assert "✗ ValueError: too much: 101 · dead letter after 1 try · payments.py:14" in failure
    assert see.split("see")[1].strip() == "microflow dead-letters list --service payments"


def test_a_retry_says_which_try_it_was_and_when_the_next_one_is(project: Project) -> None:
    project.write("payments.py", SERVICE.replace("Retry.never()", "Retry(attempts=3)"))
    service = project.start("run", "payments.py", environment=CONSOLE)
    service.until_ready()

    project.json_lines("emit", "OrderAccepted", "order_id=o-1", "total=101", "--app", "payments.py")
    service.until(lambda: "✗" in service.stdout)

    assert re.search(r"✗ ValueError: too much: 101 · try 1/3 · again in \S+ m?s · payments.py:14\n", service.stdout)


@pytest.mark.parametrize(("options", "shown"), [([], False), (["-v"], True)])
def test_duplicates_are_shown_with_v_only(project: Project, options: list[str], shown: bool) -> None:
    service = project.start("run", "payments.py", *options, environment=CONSOLE)
    service.until_ready()

    _publish_twice(project)
    service.until(lambda: service.stdout.count("PaymentReceived") == 2)

    assert ("duplicate of first" in service.stdout) is shown


GROUP = """
import asyncio
from microflow import Event, Retry, on

class Placed(Event, key="order_id"):
    order_id: str
    count: int = 1

async def break_down(order):
    raise KeyError(order.order_id)

@on("Placed", retry=Retry.never())
async def take(order: Placed) -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(break_down(order))

@on("Placed", retry=Retry.never())
async def read(order: Placed) -> None:
    Placed.model_validate({})

@on("Placed", retry=Retry.never())
async def write(order: Placed, context: Context) -> None:
    context.write("insert into nowhere values ($1)", order.order_id)
""".replace("import Event", "import Context, Event")


def test_a_dead_letter_names_the_cause_that_a_group_or_a_validation_holds(project: Project) -> None:
    project.write("shop.py", GROUP)
    service = project.start("run", "shop.py", environment=CONSOLE)
    service.until_ready()

    project.json_lines("emit", "Placed", "order_id=o-1", "--app", "shop.py")
    service.until(lambda: service.stdout.count("✗") == 3)

    assert (
        "✗ KeyError: 'o-1' (the only error in ExceptionGroup) · dead letter after 1 try · shop.py:10" in service.stdout
    )
    assert "✗ ValidationError: Placed: order_id: Field required · dead letter after 1 try" in service.stdout
    letters = {letter["handler"]: letter["error"] for letter in project.json_lines("dead-letters", "list")}
    assert letters["take"].startswith("KeyError: 'o-1'")
    assert letters["read"].startswith("ValidationError: Placed: order_id: Field required")
    listed = project.run("dead-letters", "list").stdout
    assert "KeyError: 'o-1'" in listed
    shown = project.run("dead-letters", "show", "1").stdout + project.run("dead-letters", "show", "2").stdout
    assert 'File "shop.py", line 10, in break_down' in shown + project.run("dead-letters", "show", "3").stdout


def test_no_frame_of_a_framework_is_called_the_place(project: Project) -> None:
    project.write("shop.py", GROUP)
    service = project.start("run", "shop.py")
    service.until_ready()

    project.json_lines("emit", "Placed", "order_id=o-1", "--app", "shop.py")
    service.until(lambda: len(service.reports()) == 3)

    [place] = [report["where"] for report in service.reports() if report["handler"] == "write"]
    assert place.startswith(f"{project.folder}/shop.py:")
    [letter] = project.json_lines("dead-letters", "list", "--handler", "write")
    shown = project.json_lines("dead-letters", "show", str(letter["id"]))
    assert "contextlib" not in shown[0]["trace"]


def test_the_cause_of_a_record_that_does_not_fit_comes_before_its_place(project: Project) -> None:
    service = project.start("run", "payments.py", environment=CONSOLE)
    service.until_ready()

    for number in ("o-1", "o-2"):
        project.json_lines("emit", "OrderAccepted", f"order_id={number}", "total=abc", "--key", "order_id")
    service.until(lambda: service.stdout.count("✗") == 2)

    said = 'DecodeError: OrderAccepted does not fit its schema: total: expected a number, got "abc"'
    assert f"✗ {said} at payments.py:4 · dead letter after 1 try · payments.py:" in service.stdout
    assert service.stdout.count("see  microflow dead-letters list --service payments") == 1
    assert said in project.run("dead-letters", "list").stdout


def _publish_twice(project: Project) -> None:
    """One event two times, with one id, then another one."""
    program = """
import asyncio
from pathlib import Path
from microflow.clocks import SystemClock
from microflow.envelopes import headers_of
from microflow.ports import Record
from microflow.transports.local import LocalTransport

async def main():
    clock = SystemClock()
    transport = LocalTransport.open(Path(".microflow/log.db"), clock=clock)
    for name, key in (("first", "o-1"), ("first", "o-1"), ("second", "o-2")):
        headers = headers_of(identifier=name, event_type="OrderAccepted", source="/web", now=clock.now(),
                             correlation_id=name, causation_id=None, key=key.encode())
        value = ('{"order_id": "%s"}' % key).encode()
        await transport.publish([Record("OrderAccepted", 0, key.encode(), value, headers)])
    await transport.close()
asyncio.run(main())
"""
    subprocess.run([COMMAND[0], "-c", program], cwd=project.folder, check=True, timeout=20)


@pytest.mark.parametrize(
    ("environment", "coloured"),
    [({}, False), ({"FORCE_COLOR": "1"}, True), ({"FORCE_COLOR": "1", "NO_COLOR": "1"}, False)],
)
def test_colours_are_forced_and_forbidden_by_the_environment(
    project: Project, environment: dict[str, str], coloured: bool
) -> None:
    service = project.start("run", "payments.py", environment=CONSOLE | environment)

    service.until_ready()

    assert ("\033[" in service.stdout) is coloured


def test_quiet_shows_nothing_while_all_is_well(project: Project) -> None:
    project.write("payments.py", SLOW.replace("{wait}", ""))
    service = project.start("run", "payments.py", "-q", environment=CONSOLE)

    project.json_lines("emit", "OrderAccepted", "order_id=o-1", "--key", "order_id")
    service.until(lambda: (project.folder / "finished").exists())

    assert service.stop() == 0
    assert (service.stdout, service.stderr) == ("", "")


def test_quiet_shows_trouble(project: Project) -> None:
    service = project.start("run", "payments.py", "-q", environment=CONSOLE)

    project.json_lines("emit", "OrderAccepted", "order_id=o-1", "total=101", "--app", "payments.py")
    service.until(lambda: "dead letter" in service.stdout)

    assert "ValueError: too much: 101" in service.stdout


def test_a_database_that_is_typed_goes_before_one_that_is_set_for_the_service(project: Project) -> None:
    environment = {"MICROFLOW_PAYMENTS_DATABASE": "sqlite:///set.db"}
    service = project.start("run", "payments.py", "--database", "sqlite:///typed.db", environment=environment)
    service.until_ready()

    assert service.lines()[0]["database"] == "sqlite:///typed.db"
    assert not (project.folder / "set.db").exists()


def test_services_that_share_a_process_share_a_log_in_memory(project: Project) -> None:
    project.write(
        "shipping.py",
        """
        from microflow import Event, on
        class PaymentReceived(Event):
            order_id: str
        @on("PaymentReceived")
        async def ship(payment: PaymentReceived) -> None: ...
        """,
    )
    project.write(
        "web.py",
        """
import sqlite3, sys
from microflow import Event, Outbox
class OrderAccepted(Event, key="order_id"):
    order_id: str
connection = sqlite3.connect(sys.argv[1])
Outbox("web").append_sync(connection, OrderAccepted(order_id="o-1"))
connection.commit()
""",
    )
    services = project.start("run", "payments.py", "shipping.py", "--log", "memory:")
    services.until(lambda: services.stdout.count('"ready"') == 2)

    [database] = [line["database"] for line in services.lines() if line.get("service") == "payments"]
    path = database.removeprefix("sqlite:///")
    subprocess.run([COMMAND[0], "web.py", path], cwd=project.folder, check=True, timeout=20)
    services.until(lambda: len(services.reports()) == 2)

    assert [report["handler"] for report in services.reports()] == ["take_payment", "ship"]
    assert not (project.folder / ".microflow").exists()


def test_several_targets_share_a_process_and_each_has_its_database(project: Project) -> None:
    project.write(
        "shipping.py",
        """
        from microflow import Event, on
        class PaymentReceived(Event):
            order_id: str
        @on("PaymentReceived")
        async def ship(payment: PaymentReceived) -> None: ...
        """,
    )
    services = project.start("run", "payments.py", "shipping.py")
    services.until(lambda: services.stdout.count('"ready"') == 2)

    project.json_lines("emit", "OrderAccepted", "order_id=o-1", "--app", "payments.py")
    services.until(lambda: len(services.reports()) == 2)

    assert [report["handler"] for report in services.reports()] == ["take_payment", "ship"]
    assert (project.folder / ".microflow" / "payments.db").is_file()
    assert (project.folder / ".microflow" / "shipping.db").is_file()
    assert services.stop() == 0


def test_the_users_own_logging_is_a_line_with_its_flow(project: Project) -> None:
    project.write(
        "payments.py",
        """
        from microflow import Context, Event, on
        class OrderAccepted(Event):
            order_id: str
        @on("OrderAccepted")
        async def take_payment(order: OrderAccepted, context: Context) -> None:
            context.logger.info("taking %s", order.order_id)
        """,
    )
    service = project.start("run", "payments.py")
    service.until_ready()

    project.json_lines("emit", "OrderAccepted", "order_id=o-1", "--key", "order_id", "--flow", "f-1")
    service.until(service.reports)

    [line] = [line for line in service.lines() if line.get("message") == "taking o-1"]
    assert (line["level"], line["logger"], line["flow"]) == ("info", "payments.take_payment", "f-1")


def test_a_package_that_writes_into_the_same_folder_is_warned_of(project: Project) -> None:
    project.write("site/microflow-0.3.dist-info/METADATA", "Metadata-Version: 2.1\nName: microflow\nVersion: 0.3\n")
    service = project.start("run", "payments.py", environment={"PYTHONPATH": str(project.folder / "site")})
    service.until_ready()

    assert "pip uninstall microflow" in service.lines()[0]["message"]


FAILING = SERVICE.replace("retry=Retry.never()", "retry=Retry(attempts=9, first_delay=timedelta(hours=1))").replace(
    "from decimal", "from datetime import timedelta\nfrom decimal"
)


def test_how_many_keys_may_fail_before_a_handler_rests_is_a_variable(project: Project) -> None:
    project.write("payments.py", FAILING)
    service = project.start("run", "payments.py", environment={"MICROFLOW_FAILING_KEYS": "3"})
    service.until_ready()

    _emit_failing(project, 6)

    service.until(lambda: "take_payment has failed for 3 keys in a row and rests" in service.stdout)


def test_how_much_may_be_parked_is_a_line_in_the_project_s_file(project: Project) -> None:
    project.write("payments.py", FAILING)
    project.write("microflow.toml", "parked_per_handler = 2\n")
    service = project.start("run", "payments.py")
    service.until_ready()

    _emit_failing(project, 2)

    service.until(lambda: "2 events are parked for take_payment, and no more may be" in service.stdout)


def _emit_failing(project: Project, count: int) -> None:
    lines = "".join(f'{{"order_id": "o-{number}", "total": 101}}\n' for number in range(count))
    ended = project.run("emit", "OrderAccepted", "--file", "-", "--app", "payments.py", stdin=lines)
    assert ended.returncode == 0, ended.stderr
