"""A service on real files in the test's own process, for what needs no second one."""

from __future__ import annotations

import asyncio
import random
import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any, Self

from microflow.clocks import SystemClock
from microflow.envelopes import seal_root
from microflow.events import Event
from microflow.partitioner import Partitioner
from microflow.ports import Migration, Record
from microflow.reports import Report
from microflow.service import Service, build, topic_of
from microflow.stores.sqlite import SqliteStore
from microflow.transports.local import LocalTransport
from microflow.worker import Surroundings, Worker

TABLE = 'create table effects (handler text not null, number integer not null, "text" text)'
PARTITIONS = 2
LARGEST_RECORD = 32 * 1024 * 1024
SOON = 20.0


class OneProcess:
    """Runs a service while the block runs. `ended` counts (handler, outcome) of its executions."""

    def __init__(self, service: Service, folder: Path, *, dependencies: Mapping[Any, Any] | None = None) -> None:
        self.ended: Counter[tuple[str, str]] = Counter()
        self.reports: list[Report] = []
        self._service = service
        self._folder = folder
        self._dependencies = dependencies
        self._random = random.Random(1)

    async def __aenter__(self) -> Self:
        clock = SystemClock()
        self.transport = LocalTransport.open(
            self._folder / "log.db", clock=clock, partitions=PARTITIONS, max_record_bytes=LARGEST_RECORD
        )
        definition = build(self._service)
        self._database = self._folder / f"{definition.name}.db"
        self.store = await SqliteStore.open(self._database, service=definition.name, clock=clock)
        surroundings = Surroundings(
            store=self.store,
            transport=self.transport,
            clock=clock,
            owner="one",
            chance=self._random.random,
            observe=self._observe,
            dependencies=self._dependencies,
        )
        self.worker = Worker(definition, surroundings, migrations=[Migration("effects", TABLE, __file__)])
        await self.worker.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.worker.stop(drain=timedelta(seconds=1))
        await self.store.close()
        await self.transport.close()

    def record(self, event: Event) -> Record:
        """The record of a root event."""
        sealed = seal_root(
            event,
            service="shop",
            topic=topic_of(type(event), {}),
            now=SystemClock().now(),
            random_bits=self._random.getrandbits,
        )
        assert sealed.key is not None
        partition = Partitioner().partition(sealed.key, partitions=PARTITIONS)
        return Record(sealed.topic, partition, sealed.key, sealed.value, sealed.headers)

    async def publish(self, records: Sequence[Record]) -> None:
        assert not any(await self.transport.publish(records))

    def rows(self, sql: str) -> list[tuple[Any, ...]]:
        """Rows of the service's database, on a connection of its own."""
        with closing(sqlite3.connect(f"file:{self._database}?mode=ro", uri=True)) as connection:
            return connection.execute(sql).fetchall()

    async def until(self, condition: Callable[[], bool], what: str) -> None:
        """Let the service run until something is so; fails if it ends before, or if that takes too long."""
        ended = asyncio.ensure_future(self.worker.ended())
        try:
            limit = time.monotonic() + SOON
            while not condition():
                assert not ended.done(), f"the service ended: {ended.exception()!r}"
                assert time.monotonic() < limit, f"not within {SOON} s: {what}; {self.ended}"
                await asyncio.sleep(0.005)
        finally:
            ended.cancel()
            await asyncio.gather(ended, return_exceptions=True)

    async def until_idle(self) -> None:
        """Let the service run until nothing is left to be done."""
        limit = time.monotonic() + SOON
        while not await self.worker.idle():
            assert time.monotonic() < limit, f"not idle within {SOON} s; {self.ended}"
            await asyncio.sleep(0.005)

    def _observe(self, report: Report) -> None:
        self.ended[report.handler, report.outcome] += 1
        self.reports.append(report)
