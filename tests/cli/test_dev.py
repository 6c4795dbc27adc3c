"""`microflow dev`: services that start anew when their files change."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from tests.cli.projects import SERVICE, Child, Project

EMIT = ("emit", "OrderAccepted", "--key", "order_id")


def test_a_service_starts_anew_with_what_was_changed(project: Project) -> None:
    file = project.write("payments.py")
    dev = project.start("dev", "payments.py")
    dev.until(lambda: said(dev, "ready") == 1)
    project.json_lines(*EMIT, "order_id=o-1")
    dev.until(lambda: len(dev.reports()) == 1)

    file.write_text(SERVICE.replace("async def take_payment", "async def charge_card"))
    dev.until(lambda: said(dev, "ready") == 2)
    project.json_lines(*EMIT, "order_id=o-2")
    dev.until(lambda: len(dev.reports()) == 2)

    dev.send(signal.SIGINT)
    assert dev.end() == 0
    assert [(report["handler"], report["key"]) for report in dev.reports()] == [
        ("take_payment", "o-1"),
        ("charge_card", "o-2"),
    ]


def test_a_file_that_cannot_be_loaded_is_told_and_waited_for(project: Project) -> None:
    file = project.write("payments.py", SERVICE + "\ndef broken(\n")
    dev = project.start("dev", "payments.py")
    dev.until(lambda: "waiting for a change" in dev.stdout)
    assert "payments.py:" in dev.stdout
    assert "Traceback" not in dev.stdout

    file.write_text(SERVICE)
    dev.until(lambda: said(dev, "ready") == 1)

    dev.send(signal.SIGTERM)
    assert dev.end() == 0


def test_a_service_that_is_killed_comes_back(project: Project) -> None:
    project.write(
        "payments.py",
        """
        import os, signal
        from pathlib import Path
        from microflow import Event, on

        class OrderAccepted(Event):
            order_id: str

        @on("OrderAccepted")
        async def take_payment(order: OrderAccepted) -> None:
            if not Path("once").exists():
                Path("once").touch()
                os.kill(os.getpid(), signal.SIGKILL)
        """,
    )
    dev = project.start("dev", "payments.py")
    dev.until(lambda: said(dev, "ready") == 1)

    project.json_lines(*EMIT, "order_id=o-1")

    dev.until(lambda: [report["outcome"] for report in dev.reports()] == ["done"])
    assert "killed by signal 9" in dev.stdout
    dev.send(signal.SIGINT)
    assert dev.end() == 0


def test_only_the_service_whose_file_changed_starts_anew(project: Project) -> None:
    file = project.write("payments.py")
    project.write("shipping.py", SERVICE.replace("take_payment", "ship"))
    dev = project.start("dev", "payments.py", "shipping.py")
    dev.until(lambda: said(dev, "ready") == 2)

    file.write_text(SERVICE.replace("take_payment", "charge_card"))
    dev.until(lambda: said(dev, "ready") == 3)

    dev.send(signal.SIGINT)
    assert dev.end() == 0
    assert [line["service"] for line in dev.lines() if line.get("message") == "ready"][2] == "payments"
    assert sum("starting anew" in line.get("message", "") for line in dev.lines()) == 1


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGHUP])
def test_whatever_ends_it_its_services_end_too(project: Project, number: signal.Signals) -> None:
    project.write(
        "payments.py", SERVICE + "\nimport os\nfrom pathlib import Path\nPath('pid').write_text(str(os.getpid()))\n"
    )
    dev = project.start("dev", "payments.py")
    dev.until(lambda: said(dev, "ready") == 1)
    service = int((project.folder / "pid").read_text())

    dev.send(number)
    dev.end()

    end = time.monotonic() + 20
    while is_alive(service):
        assert time.monotonic() < end
        time.sleep(0.02)


def test_a_log_in_memory_is_refused_because_nobody_could_share_it(project: Project) -> None:
    project.write("payments.py")

    refused = project.run("dev", "payments.py", "--log", "memory:")

    assert refused.returncode == 2
    assert "a log in memory is one process's" in refused.stderr


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().split(")")[1].split()[0] != "Z" if Path("/proc").exists() else True


def said(dev: Child, message: str) -> int:
    """How often it has said something."""
    return sum(line.get("message") == message for line in dev.lines())
