"""How `microflow run` ends: by a signal, by a second one, by a reader that has gone."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time

import pytest

from tests.cli.projects import COMMAND, SLOW, Project, clean_environment


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_what_runs_finish_and_ends_with_zero(project: Project, number: signal.Signals) -> None:
    project.write("payments.py", SLOW.replace("{wait}", "await asyncio.sleep(0.5)"))
    service = project.start("run", "payments.py")
    service.until_ready()
    project.json_lines("emit", "OrderAccepted", "order_id=o-1", "--key", "order_id")
    service.until(lambda: (project.folder / "began").exists())

    service.send(number)

    assert service.end() == 0
    assert (project.folder / "finished").exists()
    assert [report["outcome"] for report in service.reports()] == ["done"]


def test_a_second_signal_ends_at_once(project: Project) -> None:
    project.write("payments.py", SLOW.replace("{wait}", "await asyncio.sleep(60)"))
    service = project.start("run", "payments.py")
    service.until_ready()
    project.json_lines("emit", "OrderAccepted", "order_id=o-1", "--key", "order_id")
    service.until(lambda: (project.folder / "began").exists())

    service.send(signal.SIGINT)
    service.until(lambda: "stopping" in service.stdout)
    service.send(signal.SIGINT)

    assert service.end() == 130


@pytest.mark.parametrize("wait", ["await asyncio.sleep(60)", "__import__('time').sleep(60)"])
def test_a_stop_takes_no_longer_than_its_drain_whatever_a_handler_does(project: Project, wait: str) -> None:
    project.write("payments.py", SLOW.replace("{wait}", wait))
    service = project.start("run", "payments.py", "--drain", "1s")
    service.until_ready()
    project.json_lines("emit", "OrderAccepted", "order_id=o-1", "--key", "order_id")
    service.until(lambda: (project.folder / "began").exists())

    began = time.monotonic()
    assert service.stop() == 0

    assert time.monotonic() - began < 3
    assert not (project.folder / "finished").exists()


def test_a_stop_while_it_starts_leaves_the_lifespan_and_ends_with_zero(project: Project) -> None:
    project.write(
        "payments.py",
        """
        import asyncio
        from contextlib import asynccontextmanager
        from pathlib import Path
        from microflow import Event, Service, on
        class OrderAccepted(Event):
            order_id: str
        @on("OrderAccepted")
        async def take_payment(order: OrderAccepted) -> None: ...
        @asynccontextmanager
        async def slow():
            Path("entered").touch()
            try:
                await asyncio.sleep(60)
                yield {}
            finally:
                Path("left").touch()
        service = Service("payments", lifespan=slow)
        """,
    )
    service = project.start("run", "payments.py")
    service.until(lambda: (project.folder / "entered").exists())

    assert service.stop() == 0

    assert (project.folder / "left").exists()
    assert "Traceback" not in service.stderr


def test_a_reader_that_has_read_enough_ends_it_quietly(project: Project) -> None:
    reading, writing = os.pipe()
    process = subprocess.Popen(
        [*COMMAND, "run", "payments.py"],
        cwd=project.folder,
        env=clean_environment(),
        stdout=writing,
        stderr=subprocess.PIPE,
    )
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        assert json.loads(pipe.readline())["message"] == "ready"

    project.json_lines("emit", "OrderAccepted", "order_id=o-1", "--app", "payments.py")
    _, err = process.communicate(timeout=20)

    assert (process.returncode, err) == (0, b"")
