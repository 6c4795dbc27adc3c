"""The chain as its benchmark sees it: starts the services, publishes what begins, and waits for what has ended."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import sqlite3
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

from chain.first import Begun

from microflow.clocks import SystemClock
from microflow.envelopes import seal_root
from microflow.partitioner import Partitioner
from microflow.ports import Record
from microflow.transports.local import LocalTransport

ACCOUNTS = 1000
PATIENCE = timedelta(minutes=5)
PROCESS = Path(__file__).with_name("chain") / "process.py"


class BenchmarkError(Exception):
    """What was measured did not do what it should have: there is no figure."""


@dataclass(eq=False)
class Process:
    """A process with services of the chain in it, and what it has told."""

    names: Sequence[str]
    process: asyncio.subprocess.Process
    handled: int = 0
    at: float = 0.0
    cpu: float = 0.0
    failure: str | None = None
    progress: asyncio.Event = field(default_factory=asyncio.Event)
    ready: asyncio.Event = field(default_factory=asyncio.Event)

    async def listen(self) -> None:
        assert self.process.stdout is not None
        async for line in self.process.stdout:
            said: dict[str, Any] = json.loads(line)
            self.handled = said.get("handled", self.handled)
            self.at = said.get("at", self.at)
            self.cpu = said.get("cpu", self.cpu)
            self.failure = said.get("failure", self.failure)
            if "ready" in said:
                self.ready.set()
            self.progress.set()
        if await self.process.wait() != 0:
            self.failure = self.failure or f"{', '.join(self.names)} exited with {self.process.returncode}"
        self.ready.set()
        self.progress.set()

    def check(self) -> None:
        if self.failure is not None:
            raise BenchmarkError(self.failure)


class Chain:
    """The running services. `publish` and `handled` speak of events since it was started."""

    def __init__(self, folder: Path, processes: Sequence[Process], *, retention: timedelta | None) -> None:
        self.folder = folder
        self.processes = processes
        log = folder / "log.db"
        self._transport = LocalTransport.open(log, clock=SystemClock(), retention=retention or timedelta(days=7))
        self._partitioner = Partitioner()
        self._random = random.Random(1)
        self.published = 0

    def records(self, count: int) -> list[Record]:
        """The next events that begin a chain, each of its own flow, spread over a thousand accounts."""
        clock, records = SystemClock(), []
        for number in range(self.published, self.published + count):
            event = Begun(account=f"account-{number % ACCOUNTS}", number=number)
            sealed = seal_root(
                event, service="web", topic="Begun", now=clock.now(), random_bits=self._random.getrandbits
            )
            assert sealed.key is not None
            partition = self._partitioner.partition(sealed.key, partitions=6)
            records.append(Record("Begun", partition, sealed.key, sealed.value, sealed.headers))
        return records

    async def publish(self, count: int, *, at_once: int = 500) -> None:
        """Seal and publish events, as a relay would: some hundreds in a transaction of the log."""
        while count > 0:
            records = self.records(min(count, at_once))
            for error in await self._transport.publish(records):
                if error is not None:
                    raise error
            self.published += len(records)
            count -= len(records)
            await asyncio.sleep(0)

    def handled(self) -> int:
        """How many events have been handled and committed by now."""
        return sum(process.handled for process in self.processes)

    async def until_handled(self, count: int, *, look: Callable[[], None] = lambda: None) -> float:
        """Wait until so many events, of both services together, are committed; return when the last one was."""
        deadline = time.monotonic() + PATIENCE.total_seconds()
        while self.handled() < count:
            for process in self.processes:
                process.progress.clear()
                process.check()
            look()
            waits = [asyncio.create_task(process.progress.wait()) for process in self.processes]
            await asyncio.wait(waits, timeout=1, return_when=asyncio.FIRST_COMPLETED)
            for wait in waits:
                wait.cancel()
            if time.monotonic() > deadline:
                raise BenchmarkError(f"only {self.handled()} of {count} events were handled in {PATIENCE}")
        return max(process.at for process in self.processes)

    async def stop(self) -> float:
        """Stop the services; return the CPU seconds that they took together."""
        await self._transport.close()
        for process in self.processes:
            assert process.process.stdin is not None
            process.process.stdin.close()
        await asyncio.gather(*(process.process.wait() for process in self.processes))
        return sum(process.cpu for process in self.processes)

    def check(self) -> None:
        """Raise unless every chain has taken effect in both databases, once. The services must have been stopped."""
        for name in ("first", "second"):
            with contextlib.closing(sqlite3.connect(self.folder / f"{name}.db")) as connection:
                (events,) = connection.execute("select coalesce(sum(events), 0) from accounts").fetchone()
            if events != self.published:
                raise BenchmarkError(f"{name} has counted {events} events, and {self.published} were published")


@contextlib.asynccontextmanager
async def running_chain(
    folder: Path,
    *,
    together: bool = False,
    retention: timedelta | None = None,
    instants: bool = False,
) -> AsyncIterator[Chain]:
    """Both services at work, each in a process of its own unless they are `together`."""
    groups = [["first", "second"]] if together else [["first"], ["second"]]
    processes: list[Process] = []
    listeners: list[asyncio.Task[None]] = []
    try:
        for names in groups:
            options: list[str] = [] if retention is None else ["--retention", str(retention.total_seconds())]
            if instants:
                options += ["--instants", str(folder / f"{'-'.join(names)}.json")]
            started = await asyncio.create_subprocess_exec(
                sys.executable,
                str(PROCESS),
                str(folder),
                ",".join(names),
                *options,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
            )
            processes.append(Process(names, started))
            listeners.append(asyncio.create_task(processes[-1].listen()))
            await processes[-1].ready.wait()
            processes[-1].check()
        yield Chain(folder, processes, retention=retention)
        await asyncio.wait(listeners, timeout=10)
    finally:
        for process in processes:
            if process.process.returncode is None:
                process.process.kill()
                await process.process.wait()
        for listener in listeners:
            listener.cancel()
