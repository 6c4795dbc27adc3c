"""Hops: how many events a second somebody takes from one topic to the next, and what that costs."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import asyncpg
from flow import BenchmarkError
from machine import cpu_of, server_at
from scenery import Scenery

PATIENCE = timedelta(minutes=5)
LOOK_EVERY = timedelta(milliseconds=10)


@dataclass(frozen=True, slots=True)
class Hops:
    """`rate` in events a second; CPU seconds per event of the peer itself, of PostgreSQL and of the broker."""

    rate: float
    own: float
    postgres: float
    broker: float


async def measure_hops(scenery: Scenery, module: str, variant: str, *, events: int) -> Hops:
    """From the first event in the peer's hands until so many have reached the next topic, or their end in a table."""
    async with running_peer(scenery, module, variant, events=events, patience=PATIENCE) as (process, target):
        return await _measured(scenery, process, target=target, events=events)


@contextlib.asynccontextmanager
async def running_peer(
    scenery: Scenery, module: str, variant: str, *, events: int, patience: timedelta
) -> AsyncIterator[tuple[asyncio.subprocess.Process, str]]:
    """A peer at work with a database of its own, and the topic that it emits to. Afterwards its rows are counted."""
    target, database = await scenery.new_topic("Continued"), await scenery.new_database()
    command = [sys.executable, "-m", f"peers.{module}", "--kafka", scenery.kafka, "--database", database]
    command += [
        "--group",
        scenery.new_name("peer"),
        "--source",
        scenery.source,
        "--target",
        target,
        "--events",
        str(events),
        "--variant",
        variant,
    ]
    process = await asyncio.create_subprocess_exec(
        *command, cwd=Path(__file__).parent, stdout=asyncio.subprocess.PIPE, start_new_session=True
    )
    try:
        async with asyncio.timeout(patience.total_seconds()):
            yield process, target
    except TimeoutError:
        arrived = await scenery.published(target)
        raise BenchmarkError(f"{module} {variant} took {arrived} of {events} events in {patience}") from None
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()
        await _check(database, module, at_least=events)


async def _measured(scenery: Scenery, process: asyncio.subprocess.Process, *, target: str, events: int) -> Hops:
    began = (await said_by(process))["began"]
    before = _cpu(scenery, process.pid)
    ends = asyncio.create_task(said_by(process))
    while not ends.done() and await scenery.published(target) < events:
        await asyncio.wait([ends], timeout=LOOK_EVERY.total_seconds())
    ended = time.monotonic() if not ends.done() else ends.result()["ended"]
    arrived = max(await scenery.published(target), events)
    spent = [(now - then) / arrived for now, then in zip(_cpu(scenery, process.pid), before, strict=True)]
    ends.cancel()
    return Hops(arrived / (ended - began), *spent)


def _cpu(scenery: Scenery, peer: int) -> tuple[float, float, float]:
    return cpu_of([peer]), cpu_of(server_at(scenery.database_server)), cpu_of(server_at(scenery.kafka))


async def said_by(process: asyncio.subprocess.Process) -> dict[str, Any]:
    """The next thing that a peer says."""
    assert process.stdout is not None
    while line := await process.stdout.readline():
        if line.startswith(b"{"):
            said: dict[str, Any] = json.loads(line)
            return said
    raise BenchmarkError(f"a peer ended with {await process.wait()}")


async def _check(database: str, module: str, *, at_least: int) -> None:
    """Raise unless the rows in the database have counted the events that left."""
    connection = await asyncpg.connect(database)
    try:
        if await connection.fetchval("select to_regclass('accounts')") is not None:
            counted = await connection.fetchval("select coalesce(sum(events), 0) from accounts")
            if counted < at_least:
                raise BenchmarkError(f"{module} has counted {counted} events, and {at_least} have left")
    finally:
        await connection.close()
