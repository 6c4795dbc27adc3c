"""A chain under load while something breaks: how it is started, how one sees that it works again, how it is judged."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from servers.kafka import INTERNAL, Kafka
from servers.postgres import Postgres
from tests.crash import checker
from tests.crash.checker import SERVICES
from tests.crash.harness import Chain, Nursery
from tests.crash.load import Load
from tests.crash.orders import Orders
from tests.crash.readings import PARTITIONS, Snapshot
from tests.crash.real_ground import RealGround

SOON = 120.0
"""Seconds within which a chain must work again, and be drained, on a machine that is busy with other things."""


class Stand:
    """Two services of two processes each, on servers that a test may break."""

    def __init__(self, chain: Chain, ground: RealGround, *, long: float) -> None:
        self.chain = chain
        self._long = long
        self.ground = ground

    def start(self, *, processes: int = 2, **more: Any) -> None:
        """Start the processes and return when they share the partitions."""
        for service in SERVICES:
            for slot in range(processes):
                self.chain.start(self.order(service, slot, **more))
        for service in SERVICES:
            names = {f"{service}-{slot}" for slot in range(processes)}
            self.chain.wait_until(lambda: self.chain.owners(service) == names, f"{names} share", at_most=SOON)  # noqa: B023

    def order(self, service: str, slot: int, **more: Any) -> Orders:
        """What a process is told to be."""
        return self.chain.order(service, slot, long=self._long, batch=50, **more)

    @contextmanager
    def under_load(self, *, rate: int = 30) -> Iterator[Load]:
        """The chain is at work while the block runs."""
        with Load(self.chain, rate=rate, long=3) as load:
            self.works()
            yield load

    def works(self) -> float:
        """Wait until an order that is placed now has gone all the way, in every partition; return how long it took."""
        begun = time.monotonic()
        marks = self._marks()
        wanted = 2 * PARTITIONS
        self.chain.publish([self.chain.placed(mark) for mark in marks])

        def have_arrived() -> bool:
            keys = ", ".join(f"'{mark}'" for mark in marks)
            try:
                count = self.ground.ask("second", f'select count(*) from effects where "key" in ({keys})')
            except Exception:
                return False  # the database is away
            return bool(count == wanted)

        self.chain.wait_until(have_arrived, f"{marks} have gone all the way", at_most=SOON)
        return time.monotonic() - begun

    def judged(self, *, at_least: int = 0, at_most: float = SOON) -> Snapshot:
        """Wait until nothing is left to be done, and look for broken promises."""
        snapshot = self.chain.run_until_drained(spare_faults=True, at_most=at_most)
        violations = checker.check(snapshot)
        assert not violations, "\n".join(str(each) for each in violations[:10])
        assert len(snapshot.tables["second"].effects) >= at_least
        return snapshot

    def _marks(self) -> list[str]:
        """Accounts that nobody else has, one in each partition."""
        found: dict[int, str] = {}
        number = 0
        while len(found) < PARTITIONS:
            mark = f"mark-{time.monotonic_ns()}-{number}"
            found.setdefault(self.chain.placed(mark).partition, mark)
            number += 1
        return list(found.values())


@contextmanager
def a_stand(
    nursery: Nursery,
    folder: Path,
    kafka: Kafka,
    postgres: Postgres,
    *,
    replicas: int = 1,
    long: float = 2.0,
    postgres_port: int | None = None,
    copies: bool = True,
) -> Iterator[Stand]:
    """A chain on these servers, in which some handlers take `long` seconds; its processes reach PostgreSQL by another
    port, if one is named, and copy dead letters to topics unless there are no `copies`."""
    ground = RealGround(
        kafka.address(INTERNAL),
        postgres.url,
        replicas=replicas,
        processes_kafka=kafka.address(),
        postgres_port=postgres_port,
        copies=copies,
    )
    with closing(ground), Chain(nursery, folder, ground=ground) as chain:
        yield Stand(chain, ground, long=long)
