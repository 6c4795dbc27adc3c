"""The crash harness: a chain of two services in processes of their own, killed where they are told to die and started
again, until nothing is left to be done."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any

from microflow.clocks import SystemClock
from microflow.envelopes import seal_root
from microflow.faults import FaultPoint
from microflow.partitioner import Partitioner
from microflow.ports import Record
from tests.crash import checker, patience
from tests.crash.first import Placed
from tests.crash.grounds import EmbeddedGround, Ground
from tests.crash.orders import Orders
from tests.crash.readings import PARTITIONS, Effect, Snapshot
from tests.crash.sparing import MOST_DEATHS

ROOT = Path(__file__).parents[2]
SOON = 20.0
"""Seconds within which whatever a test waits for must have happened, on a machine that is busy with other things."""


# How often each point is surely reached in a short run, so that up to so many times a death there may wait.
REACHED = {"watermark": 1, "revoke": 1, "assign": 1, "publish": 3, "delete": 3, "handler": 12}
OTHERWISE = 5


def times_reached(point: FaultPoint) -> int:
    return REACHED.get(point.partition(" ")[2], OTHERWISE)


class Nursery:
    """Starts processes and knows when they have ended."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.crash.nursery"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def start(self, orders: Orders) -> int:
        return int(self._ask(orders.to_json()))

    def status(self, pid: int) -> int | None:
        """The wait status of a process that has ended."""
        answer = self._ask(str(pid))
        return int(answer) if answer else None

    def close(self) -> None:
        stdin, stdout = self._streams()
        stdin.close()
        self._process.wait(timeout=10)
        stdout.close()

    def _ask(self, line: str) -> str:
        stdin, stdout = self._streams()
        stdin.write(line + "\n")
        stdin.flush()
        answer = stdout.readline()
        assert answer, "the nursery has ended"
        return answer.strip()

    def _streams(self) -> tuple[IO[str], IO[str]]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        return self._process.stdin, self._process.stdout


@dataclass(slots=True)
class Process:
    """One process of a service. `faults` are those of its next lives; when they are used up it lives without."""

    orders: Orders
    pid: int
    faults: list[str] = field(default_factory=list)
    lives: int = 1
    ended: bool = False

    @property
    def name(self) -> str:
        return self.orders.process


class Chain:
    """Two services, a log, and whatever runs of them. Use it as a context: leaving it kills everything."""

    def __init__(self, nursery: Nursery, folder: Path, *, ground: Ground | None = None, seed: int = 0) -> None:
        self.folder = folder
        self.ground = ground or EmbeddedGround(folder)
        self.deadly = {signal.SIGKILL}
        self.kills = 0
        self.last_kill = 0.0
        self.processes: list[Process] = []
        self._nursery = nursery
        self._random = random.Random(seed)

    def __enter__(self) -> Chain:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.processes:
            self.end(process)

    # ── input ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def placed(self, account: str, kind: str = "plain") -> Record:
        """The record of a new order."""
        sealed = seal_root(
            Placed(account=account, kind=kind),
            service="shop",
            topic=f"{self.ground.prefix}Placed",
            now=SystemClock().now(),
            random_bits=self._random.getrandbits,
        )
        assert sealed.key is not None
        partition = Partitioner().partition(sealed.key, partitions=PARTITIONS)
        return Record(sealed.topic, partition, sealed.key, sealed.value, sealed.headers)

    def orders(self, count: int, *, accounts: int = 5) -> list[Record]:
        """New orders: most are plain, some fail twice, take longer, are hopeless, or come again at another offset."""
        records: list[Record] = []
        for number in range(count):
            kind = {3: "flaky", 6: "late", 8: "hopeless"}.get(number % 11, "plain")
            records.append(self.placed(f"account-{self._random.randrange(accounts)}", kind))
            if number % 7 == 5:
                records.append(self._random.choice(records))
        return records

    def strange(self) -> list[Record]:
        """Records of a type that nobody handles, in every partition that the services read."""
        record = self.placed("account-0")
        headers = tuple((name, b"Strange" if name == "ce_type" else value) for name, value in record.headers)
        return [
            record._replace(topic=f"{self.ground.prefix}{topic}", partition=number, headers=headers)
            for topic in ("Placed", "orders")
            for number in range(PARTITIONS)
        ]

    def publish(self, records: Sequence[Record]) -> None:
        self.ground.publish(records)

    # ── processes ─────────────────────────────────────────────────────────────────────────────────────────────────

    def start(self, orders: Orders, *, then: Sequence[str] = ()) -> Process:
        """Start a process; `then` are the faults of its further lives."""
        process = Process(orders, self._nursery.start(orders), list(then))
        self.processes.append(process)
        return process

    def order(self, service: str, slot: int = 0, **more: Any) -> Orders:
        where = self.ground.orders(service)
        return Orders(folder=str(self.folder), service=service, process=f"{service}-{slot}", **where, **more)

    def end(self, process: Process) -> None:
        """Kill a process for good."""
        if not process.ended:
            self.signal(process, signal.SIGKILL)
            self.wait_until(lambda: self._nursery.status(process.pid) is not None, "a killed process is gone")
            process.ended = True

    def revive(self, process: Process, *, name: str | None = None) -> None:
        """Start a process that has ended again, with its next fault, and under a new name if it is given one."""
        fault = process.faults.pop(0) if process.faults else ""
        process.orders = replace(process.orders, fault=fault, process=name or process.name)
        process.pid = self._nursery.start(process.orders)
        process.lives += 1
        process.ended = False

    def signal(self, process: Process, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, number)

    def reap(self) -> list[Process]:
        """The processes that have died since the last call. Raises if one ended otherwise than by a `deadly` signal."""
        died = []
        for process in self.processes:
            if process.ended or (status := self._nursery.status(process.pid)) is None:
                continue
            process.ended = True
            if not os.WIFSIGNALED(status) or os.WTERMSIG(status) not in self.deadly:
                raise AssertionError(f"{process.name} ended with {status}:\n{self.log(process)[-4000:]}")
            self.kills += 1
            self.last_kill = time.monotonic()
            died.append(process)
        return died

    def log(self, process: Process) -> str:
        path = self.folder / f"{process.name}.log"
        return path.read_text(encoding="utf-8") if path.exists() else ""

    # ── waiting ───────────────────────────────────────────────────────────────────────────────────────────────────

    def wait_until(self, condition: Callable[[], bool], what: str, *, at_most: float = SOON) -> float:
        """Wait for something that real processes do; return how long it took. Fails with what was waited for."""
        return patience.wait_until(condition, what, at_most=at_most, story=self._story)

    def died(self, process: Process) -> bool:
        """Whether a process has been killed, by its own fault."""
        self.reap()
        return process.ended

    def stopped(self, process: Process) -> bool:
        """Whether a process has stopped, by SIGSTOP."""
        with contextlib.suppress(FileNotFoundError):
            state = Path(f"/proc/{process.pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]
            return state in "tT"
        return False

    def run_until_drained(self, *, spare_faults: bool = False, at_most: float = 2 * SOON) -> Snapshot:
        """Start what dies again, until nothing is left to be done; nobody helps. Unless `spare_faults`, every fault
        must have happened by then. `at_most` so many seconds may go by in which nothing is finished."""
        seen: Snapshot | None = None

        def drained() -> bool:
            nonlocal seen
            for process in self.reap():
                self.revive(process)
            armed = any(process.faults or process.orders.fault for process in self.processes)
            seen = self.try_snapshot()
            return (spare_faults or not armed) and seen is not None and checker.is_drained(seen)

        def finished() -> object:
            return seen and [(len(tables.effects), len(tables.dead)) for tables in seen.tables.values()]

        patience.wait_until(drained, "everything is drained", at_most=at_most, story=self._story, moved=finished)
        return self.snapshot()

    def is_drained(self) -> bool:
        snapshot = self.try_snapshot()
        return snapshot is not None and checker.is_drained(snapshot)

    def try_snapshot(self) -> Snapshot | None:
        """What is there; None while there are no tables yet."""
        with contextlib.suppress(Exception):
            return self.snapshot()
        return None

    def snapshot(self) -> Snapshot:
        return self.ground.snapshot()

    def effects(self, service: str) -> Sequence[Effect]:
        snapshot = self.try_snapshot()
        return () if snapshot is None else snapshot.tables[service].effects

    def owners(self, service: str) -> set[str]:
        """The processes that own a partition of a service, by its own database."""
        snapshot = self.try_snapshot()
        return set() if snapshot is None else set(snapshot.tables[service].owners.values())

    def has_joined(self) -> bool:
        """Whether every service has its partitions, and has stored where it reads them from."""
        snapshot = self.try_snapshot()
        return snapshot is not None and all(snapshot.tables[service].watermarks for service in checker.SERVICES)

    def has_to_spare(self, service: str) -> bool:
        """Whether a service has an event that would be given up if one more process died with it alone in hand."""
        snapshot = self.try_snapshot()
        return snapshot is not None and snapshot.tables[service].most_crashes >= MOST_DEATHS

    def executions(self) -> list[str]:
        """A line for every execution that ever began."""
        path = self.folder / "executions"
        return path.read_text(encoding="utf-8").splitlines() if path.exists() else []

    def _story(self) -> str:
        with contextlib.suppress(Exception):
            violations = "\n".join(str(each) for each in checker.check(self.snapshot())[:10])
            for process in self.processes:
                if not process.ended:
                    self.signal(process, signal.SIGUSR1)
            time.sleep(1)
            logs = "\n".join(f"── {process.name}\n{self.log(process)[-8000:]}" for process in self.processes)
            return f"{violations}\n{self.ground.story()}\n{logs}"
        return ""


@contextlib.contextmanager
def a_nursery() -> Iterator[Nursery]:
    """A nursery for several chains."""
    nursery = Nursery()
    try:
        yield nursery
    finally:
        nursery.close()
