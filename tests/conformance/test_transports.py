"""Both transports keep the promises of a log: the local one, in a file and in memory, and Kafka on a real cluster."""

from __future__ import annotations

import asyncio
import itertools
import subprocess
import sys
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from microflow.clocks import SystemClock
from microflow.conformance.transports import Abilities, Scenario, scenarios
from microflow.ports import Transport
from microflow.transports.local import LocalTransport
from servers.finding import Found
from tests.conformance.kafka_harness import KAFKA, KafkaHarness

PERSISTENT = Abilities(
    creates_topics=True, session_expiry=True, retention=True, dense_offsets=True, time_limit=timedelta(seconds=30)
)
IN_MEMORY = Abilities(
    persistent=False,
    creates_topics=True,
    session_expiry=True,
    retention=True,
    dense_offsets=True,
    time_limit=timedelta(seconds=30),
)


class LocalHarness:
    """Handles on one file. In memory, the first handle makes the log and the harness keeps it."""

    def __init__(self, folder: Path, abilities: Abilities) -> None:
        self.abilities = abilities
        self.clock = SettableClock()
        self._path = folder / "log.db"
        self._numbers = itertools.count()
        self._keeper = None if abilities.persistent else self._open(self._path, memory=True)

    def new_name(self) -> str:
        return f"name-{next(self._numbers)}"

    async def open(self) -> Transport:
        return self._open(self._path) if self._keeper is None else self._open(self._keeper.path)

    async def create_topic(self, name: str) -> None:
        transport = await self.open()
        await transport.topics.ensure([name])
        await transport.close()

    async def silence(self, transport: Transport) -> None:
        assert isinstance(transport, LocalTransport)
        await transport.disconnect()

    async def expire(self, transport: Transport) -> None:
        self.clock.ahead += timedelta(days=8)
        assert isinstance(transport, LocalTransport)
        await transport.delete_expired()

    async def close(self) -> None:
        if self._keeper is not None:
            await self._keeper.close()

    def _open(self, path: Path, *, memory: bool = False) -> LocalTransport:
        return LocalTransport.open(
            path, clock=self.clock, memory=memory, partitions=self.abilities.partitions, max_record_bytes=100_000
        )


class SettableClock(SystemClock):
    """Real time, which can be set ahead."""

    def __init__(self) -> None:
        self.ahead = timedelta()

    def now(self) -> datetime:
        return super().now() + self.ahead


@pytest.mark.parametrize("scenario", scenarios(PERSISTENT), ids=str)
def test_the_local_log_in_a_file_keeps_its_promise_that(scenario: Scenario, tmp_path: Path) -> None:
    asyncio.run(_run(scenario, LocalHarness(tmp_path, PERSISTENT)))


@pytest.mark.parametrize("scenario", scenarios(IN_MEMORY), ids=str)
def test_the_local_log_in_memory_keeps_its_promise_that(scenario: Scenario, tmp_path: Path) -> None:
    asyncio.run(_run(scenario, LocalHarness(tmp_path, IN_MEMORY)))


@pytest.mark.parametrize("scenario", scenarios(KAFKA), ids=str)
def test_kafka_keeps_its_promise_that(scenario: Scenario, kafka: Found) -> None:
    asyncio.run(scenario(KafkaHarness(kafka.address)))


def test_the_suite_needs_no_test_framework() -> None:
    program = "import sys, microflow.conformance.transports; sys.exit('pytest' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


async def _run(scenario: Scenario, harness: LocalHarness) -> None:
    try:
        await scenario(harness)
    finally:
        await harness.close()
