"""The floor under a hop: records into the local log and out of it again, with no service and no database between."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Collection
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from flow import Chain

from microflow.clocks import SystemClock
from microflow.ports import Subscription, TopicPartition
from microflow.transports.local import LocalTransport


@dataclass(frozen=True, slots=True)
class Floor:
    """Records in a second and CPU seconds for each, one process that publishes batches and fetches them."""

    rate: float
    cpu: float


class FromTheBeginning:
    """A listener that reads whatever it is given from its first record on."""

    subscription: Subscription | None = None

    async def revoked(self, partitions: Collection[TopicPartition]) -> None:
        pass

    async def assigned(self, partitions: Collection[TopicPartition]) -> None:
        assert self.subscription is not None
        for partition in partitions:
            self.subscription.seek(partition, 0)


async def measure_floor(scratch: Path, *, records: int, at_once: int = 500) -> Floor:
    """Publish and fetch in turn, some hundreds at once; the records are those that begin a chain."""
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        chain = Chain(Path(folder), [], retention=None)
        batches = [chain.records(at_once) for _ in range(max(records // at_once, 1))]
        transport = LocalTransport.open(Path(folder) / "log.db", clock=SystemClock())
        await transport.topics.ensure(["Begun"])
        listener = FromTheBeginning()
        fetched = 0
        async with transport.subscribe(["Begun"], group="floor", listener=listener) as subscription:
            listener.subscription = subscription
            await subscription.fetch(max_records=1, wait=timedelta(seconds=0.1))
            began, cpu = time.monotonic(), time.process_time()
            for number, batch in enumerate(batches, 1):
                await transport.publish(batch)
                while fetched < number * at_once:
                    fetched += len(await subscription.fetch(max_records=at_once, wait=timedelta(seconds=1)))
            seconds, cpu = time.monotonic() - began, time.process_time() - cpu
        await transport.close()
        await chain.stop()
    return Floor(rate=fetched / seconds, cpu=cpu / fetched)
