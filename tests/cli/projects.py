"""A project folder, and the real command run in it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from textwrap import dedent
from typing import Any

SERVICE = """\
from decimal import Decimal
from microflow import Event, Reject, Retry, on

class OrderAccepted(Event, key="order_id"):
    order_id: str
    total: Decimal = Decimal(0)

class PaymentReceived(Event, key="order_id"):
    order_id: str

@on("OrderAccepted", retry=Retry.never())
async def take_payment(order: OrderAccepted) -> PaymentReceived:
    if order.total > 100:
        raise ValueError(f"too much: {order.total}")
    return PaymentReceived(order_id=order.order_id)
"""

SLOW = """
import asyncio
from pathlib import Path
from microflow import Event, on

class OrderAccepted(Event):
    order_id: str

@on("OrderAccepted")
async def take_payment(order: OrderAccepted) -> None:
    Path("began").touch()
    {wait}
    Path("finished").touch()
"""

LONGEST = 60.0
"""Seconds that a command may take on a machine that is busy with other things."""

COMMAND = [sys.executable, "-m", "microflow"]


def clean_environment(**changes: str) -> dict[str, str]:
    """The environment without anything that changes what the command does or how it looks."""
    ours = {"NO_COLOR", "FORCE_COLOR", "TERM"}
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MICROFLOW_") and name not in ours}
    return kept | {"TZ": "UTC"} | changes


@dataclass
class Project:
    """A folder with services."""

    folder: Path
    children: list[Child] = field(default_factory=list)

    def write(self, name: str, source: str = SERVICE) -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(dedent(source), encoding="utf-8")
        return path

    def run(
        self, *arguments: str, stdin: str = "", environment: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """The command, to its end."""
        return subprocess.run(
            [*COMMAND, *arguments],
            cwd=self.folder,
            env=clean_environment(**(environment or {})),
            input=stdin,
            capture_output=True,
            text=True,
            timeout=LONGEST,
            check=False,
        )

    def start(self, *arguments: str, environment: dict[str, str] | None = None) -> Child:
        """The command, going on; the fixture ends it."""
        child = Child(self.folder, arguments, clean_environment(**(environment or {})))
        self.children.append(child)
        return child

    def json_lines(self, *arguments: str) -> list[dict[str, Any]]:
        """What the command prints with `--json`, after it ended well."""
        ended = self.run(*arguments, "--json")
        assert ended.returncode == 0, ended.stderr
        return [json.loads(line) for line in ended.stdout.splitlines()]


class Child:
    """A command that goes on. What it prints goes to files, so that it never waits for a reader."""

    def __init__(self, folder: Path, arguments: Sequence[str], environment: dict[str, str]) -> None:
        number = len(list(folder.glob("out-*")))
        self._out, self._err = folder / f"out-{number}", folder / f"err-{number}"
        with self._out.open("wb") as out, self._err.open("wb") as err:
            self.process = subprocess.Popen(
                [*COMMAND, *arguments], cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=out, stderr=err
            )

    @property
    def stdout(self) -> str:
        return self._out.read_text(encoding="utf-8")

    @property
    def stderr(self) -> str:
        return self._err.read_text(encoding="utf-8")

    def lines(self) -> list[dict[str, Any]]:
        """Its JSON lines up to now."""
        return [json.loads(line) for line in self.stdout.splitlines(keepends=True) if line.endswith("\n")]

    def reports(self) -> list[dict[str, Any]]:
        return [line for line in self.lines() if "outcome" in line]

    def until(self, condition: Callable[[], Any]) -> None:
        """Wait until a condition holds; fails if the process ends before, or takes too long."""
        end = time.monotonic() + LONGEST
        while not condition():
            assert self.process.poll() is None, f"ended with {self.process.returncode}: {self.stdout}{self.stderr}"
            assert time.monotonic() < end, f"too long: {self.stdout}{self.stderr}"
            time.sleep(0.02)

    def until_ready(self) -> None:
        self.until(lambda: "ready" in self.stdout)

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def end(self) -> int:
        """Wait for its end and return its exit code."""
        return self.process.wait(timeout=LONGEST)

    def stop(self) -> int:
        self.send(signal.SIGTERM)
        return self.end()

    def kill(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
