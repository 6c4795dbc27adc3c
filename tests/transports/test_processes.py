"""Real processes on one log: they share it, wake each other, and take over from one that was killed or stopped."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from microflow.clocks import SystemClock
from microflow.conformance.transports.harness import read_all
from microflow.ports import Record
from microflow.transports.local import LocalTransport
from tests.asynchronous import asynchronous

SESSION = 1.0
SLACK = 3.0  # for a loaded machine
EVERYTHING = [0, 1, 2, 3, 4, 5]


class MemberProcess:
    """A member in a process of its own, by the lines it prints."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.said: list[Mapping[str, Any]] = []

    async def says(self, wanted: Callable[[Mapping[str, Any]], bool]) -> Mapping[str, Any]:
        """The next line that is wanted."""
        assert self.process.stdout is not None
        async with asyncio.timeout(20):
            while line := await self.process.stdout.readline():
                said: Mapping[str, Any] = json.loads(line)
                self.said.append(said)
                if wanted(said):
                    return said
        raise AssertionError(f"the process has ended; it said {self.said}")

    async def gets(self, *, count: int) -> Mapping[str, Any]:
        """The line that says it got so many partitions."""
        return await self.says(lambda said: said.get("told") == "assigned" and len(said["partitions"]) == count)


@contextlib.asynccontextmanager
async def member(
    log: Path, *, session: float = SESSION, environment: Mapping[str, str] = os.environ
) -> AsyncIterator[MemberProcess]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tests.transports.member_process",
        str(log),
        str(session),
        stdout=subprocess.PIPE,
        env=environment,
    )
    try:
        yield MemberProcess(process)
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "log.db"

    async def create_topic() -> None:
        transport = LocalTransport.open(path, clock=SystemClock())
        await transport.topics.ensure(["topic"])
        await transport.close()

    asyncio.run(create_topic())
    return path


async def two_members(stack: contextlib.AsyncExitStack, log: Path) -> tuple[MemberProcess, MemberProcess]:
    one = await stack.enter_async_context(member(log))
    await one.gets(count=6)
    other = await stack.enter_async_context(member(log))
    await other.gets(count=3)
    await one.gets(count=3)
    return one, other


@asynchronous
async def test_partitions_of_a_killed_process_are_taken_over_within_the_session_timeout(log: Path) -> None:
    async with contextlib.AsyncExitStack() as stack:
        one, other = await two_members(stack, log)
        killed_at = time.monotonic()

        one.process.kill()

        said = await other.gets(count=6)
        print(f"\ntakeover after SIGKILL: {said['at'] - killed_at:.3f} s")  # noqa: T201 - a measurement
        assert said["at"] - killed_at < SESSION + SLACK


@asynchronous
async def test_a_stopped_process_loses_its_partitions_and_is_fenced_when_it_wakes(log: Path) -> None:
    async with contextlib.AsyncExitStack() as stack:
        zombie, other = await two_members(stack, log)
        had = zombie.said[-1]["partitions"]
        stopped_at = time.monotonic()

        zombie.process.send_signal(signal.SIGSTOP)
        said = await other.gets(count=6)
        zombie.process.send_signal(signal.SIGCONT)

        print(f"\ntakeover after SIGSTOP: {said['at'] - stopped_at:.3f} s")  # noqa: T201 - a measurement
        assert SESSION * 0.5 < said["at"] - stopped_at < SESSION + SLACK
        revoked = await zombie.says(lambda said: said.get("told") == "revoked")
        assert revoked["partitions"] == had
        assert (await zombie.says(lambda said: "committed" in said))["committed"] is False
        await zombie.gets(count=3)
        await other.gets(count=3)
        assert all(said["committed"] for said in other.said if "committed" in said)


@asynchronous
async def test_two_that_were_stopped_together_do_not_expel_each_other(log: Path) -> None:
    async with contextlib.AsyncExitStack() as stack:
        members = await two_members(stack, log)
        for each in members:
            each.process.send_signal(signal.SIGSTOP)
        await asyncio.sleep(2 * SESSION)

        for each in members:
            each.process.send_signal(signal.SIGCONT)

        for each in members:
            before = list(each.said)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(SESSION * 0.75):
                    await each.says(lambda said: True)
            assert each.said == before


@asynchronous
async def test_nobody_waits_for_members_that_died_before(log: Path) -> None:
    async with member(log, session=60) as dead:
        await dead.gets(count=6)
    started_at = time.monotonic()

    async with member(log, session=60) as successor:
        await successor.gets(count=6)

    assert time.monotonic() - started_at < 10


@pytest.mark.parametrize("told", [True, False], ids=["by a datagram", "by looking"])
def test_a_waiting_process_learns_of_a_record_soon(log: Path, tmp_path: Path, told: bool) -> None:
    elsewhere = tmp_path / "tmp"
    elsewhere.mkdir()
    environment = {**os.environ, "TMPDIR": str(elsewhere)} if not told else os.environ

    async def scenario() -> list[float]:
        transport = LocalTransport.open(log, clock=SystemClock())
        delays = []
        async with member(log, environment=environment) as waiting:
            await waiting.gets(count=6)
            for number in range(50):
                await asyncio.sleep(0.01)
                value = str(number)
                await transport.publish([Record("topic", 0, None, value.encode())])
                published_at = time.monotonic()
                said = await waiting.says(lambda said, value=value: value in said.get("fetched", []))  # type: ignore[misc]
                delays.append(said["at"] - published_at)
        await transport.close()
        return delays

    delays = asyncio.run(scenario())

    print(f"\nwoken after {statistics.median(delays) * 1000:.2f} ms (median), {max(delays) * 1000:.2f} ms (most)")  # noqa: T201 - a measurement
    assert statistics.median(delays) < (0.05 if told else 0.2)


def test_processes_that_start_at_once_share_one_log_and_lose_nothing(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "log.db"
    command = [sys.executable, "-m", "tests.transports.publisher_process", str(path)]
    publishers = [
        subprocess.Popen([*command, str(number), "10"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for number in range(4)
    ]
    for publisher in publishers:
        assert publisher.stdout is not None
        assert publisher.stdout.readline() == "ready\n"
    for publisher in publishers:
        assert publisher.stdin is not None
        publisher.stdin.write("go\n")
        publisher.stdin.flush()
    cluster_ids = {publisher.communicate(timeout=60)[0] for publisher in publishers}

    assert [publisher.returncode for publisher in publishers] == [0] * 4
    assert len(cluster_ids) == 1

    async def stored() -> list[Record]:
        transport = LocalTransport.open(path, clock=SystemClock())
        try:
            return await read_all(transport, "topic")
        finally:
            await transport.close()

    records = asyncio.run(stored())
    assert len(records) == 4 * 90
    for name, partition in itertools.product("0123", range(3)):
        own = [
            record
            for record in records
            if record.partition == partition and (record.value or b"").startswith(name.encode())
        ]
        assert [record.value for record in own] == [f"{name}:{number}".encode() for number in range(partition, 90, 3)]
