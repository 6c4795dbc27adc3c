"""Latency on real servers at a steady rate: of a raw record through Kafka, and from a commit to what follows it."""

from __future__ import annotations

import asyncio
import json
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from flow import BenchmarkError
from scenery import PARTITIONS, Scenery

from microflow.partitioner import Partitioner

RAW = "raw produce → consume"
CALLED = "commit → handler called downstream"
COMMITTED = "commit → committed downstream"

WARM_UP = 2.0
"""Seconds at the beginning that do not count."""

Latency: TypeAlias = tuple[float, float]
"""p50 and p99 in milliseconds."""


async def measure_real_latency(scenery: Scenery, *, rate: int, seconds: float) -> Mapping[str, Latency]:
    raw = await _raw(scenery, rate=rate, seconds=seconds)
    called, committed = await _chain(scenery, rate=rate, seconds=seconds)
    return {RAW: raw, CALLED: called, COMMITTED: committed}


async def _raw(scenery: Scenery, *, rate: int, seconds: float) -> Latency:
    topic = await scenery.new_topic("raw")
    consumer = AIOKafkaConsumer(topic, bootstrap_servers=scenery.kafka, auto_offset_reset="earliest")
    producer = AIOKafkaProducer(bootstrap_servers=scenery.kafka, acks="all", enable_idempotence=True)
    arrived: list[float] = []
    total = int(rate * (seconds + WARM_UP))

    async def consume() -> None:
        while len(arrived) < total:
            for records in (await consumer.getmany(timeout_ms=1_000)).values():
                now = time.monotonic()
                arrived.extend(now - float(record.value) for record in records)

    async with consumer, producer:
        consuming = asyncio.create_task(consume())
        began = time.monotonic()
        for number in range(total):
            await asyncio.sleep(max(began + number / rate - time.monotonic(), 0))
            value = repr(time.monotonic()).encode()
            await producer.send(topic, value, partition=number % PARTITIONS)
        await consuming
    return _percentiles(arrived[int(rate * WARM_UP) :])


async def _chain(scenery: Scenery, *, rate: int, seconds: float) -> tuple[Latency, Latency]:
    """From the first service's commit until the second one's handler was called with what it emitted, and until that
    was committed."""
    begun, continued, ended = [await scenery.new_topic(name) for name in ("Begun", "Continued", "Ended")]
    databases = [await scenery.new_database() for _ in range(2)]
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / name for name in ("first", "second")]
        topics = [("first", begun, continued), ("second", continued, ended)]
        processes: list[asyncio.subprocess.Process] = []
        try:
            for (service, source, target), database, file in zip(topics, databases, files, strict=True):
                processes.append(await _begin(scenery, service, source, target, database, file))
                await _until_ready(processes[-1], service)
            await _publish(scenery, begun, rate=rate, total=int(rate * (seconds + WARM_UP)))
            await _until(scenery, ended, int(rate * (seconds + WARM_UP)))
        finally:
            for process in processes:
                if process.returncode is None:
                    process.send_signal(signal.SIGTERM)
            for process in processes:
                await process.wait()
        first, second = (json.loads(file.read_text()) for file in files)
    handed_over = {emitted: at for _, at, emissions in first["committed"] for emitted in emissions}
    counted = second["committed"][int(rate * WARM_UP) :]
    return (
        _percentiles([second["called"][event] - handed_over[event] for event, _, _ in counted]),
        _percentiles([at - handed_over[event] for event, at, _ in counted]),
    )


async def _begin(
    scenery: Scenery, service: str, source: str, target: str, database: str, file: Path
) -> asyncio.subprocess.Process:
    command = [sys.executable, "-m", "peers.microflow_service", "--kafka", scenery.kafka, "--database", database]
    command += ["--source", source, "--target", target, "--service", service, "--instants", str(file)]
    command += ["--group", scenery.new_name(service)]
    return await asyncio.create_subprocess_exec(*command, cwd=Path(__file__).parent, stdout=asyncio.subprocess.PIPE)


async def _until_ready(process: asyncio.subprocess.Process, service: str) -> None:
    assert process.stdout is not None
    if b"ready" not in await process.stdout.readline():
        raise BenchmarkError(f"{service} did not start")


async def _publish(scenery: Scenery, topic: str, *, rate: int, total: int) -> None:
    records = scenery.events(total, topic)
    async with AIOKafkaProducer(bootstrap_servers=scenery.kafka, acks="all", enable_idempotence=True) as producer:
        began = time.monotonic()
        for number, sealed in enumerate(records):
            await asyncio.sleep(max(began + number / rate - time.monotonic(), 0))
            partition = Partitioner().partition(sealed.key or b"", partitions=PARTITIONS)
            await producer.send(topic, sealed.value, sealed.key, partition, headers=list(sealed.headers))


async def _until(scenery: Scenery, topic: str, events: int) -> None:
    deadline = time.monotonic() + 60
    while (arrived := await scenery.published(topic)) < events:
        if time.monotonic() > deadline:
            raise BenchmarkError(f"{arrived} of {events} events reached the end of the chain")
        await asyncio.sleep(0.1)


def _percentiles(seconds: Sequence[float]) -> Latency:
    cuts = statistics.quantiles(seconds, n=100)
    return cuts[49] * 1e3, cuts[98] * 1e3
