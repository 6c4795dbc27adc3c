"""One or both services of the chain in a process of its own, as `microflow run` would run them.

    process.py FOLDER SERVICE[,SERVICE] [--retention SECONDS] [--instants FILE]

Says on standard output, in lines of JSON, that it is ready, how much it has handled, and when it was told to stop
(its standard input ended) what that cost.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from importlib import import_module
from pathlib import Path
from typing import Any

from microflow.cli.garbage import collect_seldom
from microflow.clocks import SystemClock
from microflow.limits import Limits
from microflow.reports import Report
from microflow.service import build
from microflow.stores.sqlite import SqliteStore
from microflow.tables import read_migrations
from microflow.transports.local import LocalTransport
from microflow.worker import Surroundings, Worker

TELL_EVERY = 500


class ImpatientClock(SystemClock):
    """Real time, but nobody waits longer than some seconds: what happens every ten minutes happens within the run."""

    longest = timedelta(seconds=5)

    async def sleep(self, duration: timedelta) -> None:
        await super().sleep(min(duration, self.longest))


class Onlooker:
    """Counts what is committed, and remembers when, if it is asked to."""

    def __init__(self, *, instants: Path | None) -> None:
        self.instants = instants
        self._committed: list[tuple[str, str, float, list[str]]] = []
        self._called: dict[str, float] = {}
        self.handled = 0
        self.at = 0.0

    def called(self, event_id: str) -> None:
        self._called.setdefault(event_id, time.monotonic())

    def __call__(self, report: Report) -> None:
        if report.outcome != "done":
            say(failure=f"{report.handler} ended with {report.outcome}: {report.error!r}")
        self.handled += 1
        if self.instants is not None:
            emitted = [emission.id for emission in report.emitted]
            self._committed.append((report.handler, report.event_id, time.monotonic(), emitted))
        if self.handled % TELL_EVERY == 0:
            self.tell()

    def tell(self) -> None:
        self.at = time.monotonic()
        say(handled=self.handled, at=self.at)

    def write_down(self) -> None:
        if self.instants is not None:
            self.instants.write_text(json.dumps({"committed": self._committed, "called": self._called}))


async def serve(folder: Path, names: Sequence[str], *, retention: timedelta | None, onlooker: Onlooker) -> None:
    """Run these services until standard input ends."""
    clock = SystemClock() if retention is None else ImpatientClock()
    limits = Limits() if retention is None else replace(Limits(), inbox_retention=retention)
    kept: dict[str, Any] = {} if retention is None else {"retention": retention}
    workers = []
    async with contextlib.AsyncExitStack() as opened:
        for name in names:
            service = import_module(name).service
            if onlooker.instants is not None:
                service.middleware = (noting_the_call(onlooker),)
            definition = build(service)
            transport = LocalTransport.open(folder / "log.db", clock=clock, **kept)
            opened.push_async_callback(transport.close)
            store = await SqliteStore.open(folder / f"{name}.db", service=name, clock=clock)
            opened.push_async_callback(store.close)
            surroundings = Surroundings(
                store=store,
                transport=transport,
                clock=clock,
                owner=f"{name}-{os.getpid()}",
                chance=random.random,
                limits=limits,
                observe=onlooker,
            )
            worker = Worker(definition, surroundings, migrations=read_migrations(definition.tables, dialect="sqlite"))
            await worker.start()
            opened.push_async_callback(worker.stop, drain=timedelta(seconds=10))
            workers.append(asyncio.create_task(worker.ended()))
        collect_seldom()
        began = time.process_time()
        say(ready=True)
        ended = asyncio.create_task(_end_of_input())
        teller = asyncio.create_task(_tell_the_rest(onlooker))
        done, _ = await asyncio.wait([ended, teller, *workers], return_when=asyncio.FIRST_COMPLETED)
        cpu = time.process_time() - began
        for task in done - {ended}:
            task.result()
        teller.cancel()
        for task in workers:
            task.cancel()
    onlooker.write_down()
    say(cpu=cpu)


def noting_the_call(onlooker: Onlooker) -> Any:
    async def note(call_next: Any, event: Any, context: Any) -> Any:
        onlooker.called(context.event_id)
        return await call_next(event, context)

    return note


async def _tell_the_rest(onlooker: Onlooker) -> None:
    told = -1
    while True:
        if onlooker.handled != told:
            told = onlooker.handled
            onlooker.tell()
        await asyncio.sleep(0.01)


async def _end_of_input() -> None:
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    await reader.read()


def say(**what: object) -> None:
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("services")
    parser.add_argument("--retention", type=float)
    parser.add_argument("--instants", type=Path)
    arguments = parser.parse_args()
    retention = None if arguments.retention is None else timedelta(seconds=arguments.retention)
    onlooker = Onlooker(instants=arguments.instants)
    work = serve(arguments.folder, arguments.services.split(","), retention=retention, onlooker=onlooker)
    with contextlib.suppress(ImportError):
        import uvloop

        uvloop.run(work)
        return
    asyncio.run(work)


if __name__ == "__main__":
    main()
