"""A service in a process of its own, run until it is killed."""

from __future__ import annotations

import asyncio
import logging
import random
from datetime import timedelta
from pathlib import Path
from types import ModuleType

from microflow.clocks import SystemClock
from microflow.fault_injection import read_fault
from microflow.limits import Limits
from microflow.ports import Migration
from microflow.service import Service, build
from microflow.stores.sqlite import SqliteStore
from microflow.transports.local import LocalTransport
from microflow.worker import Surroundings, Worker
from tests.crash import ablations, first, second
from tests.crash.orders import Orders
from tests.crash.situation import TABLE, Situation

MODULES: dict[str, ModuleType] = {"first": first, "second": second}
PARTITIONS = 3


def run(orders: Orders) -> None:
    """Run one service until the process is killed; its log goes to standard error."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    ablations.install(orders.ablation)
    asyncio.run(serve(orders))


async def serve(orders: Orders) -> None:
    folder, clock = Path(orders.folder), SystemClock()
    transport = LocalTransport.open(
        folder / "log.db",
        clock=clock,
        partitions=PARTITIONS,
        session_timeout=timedelta(seconds=orders.session_timeout),
        heartbeat=timedelta(milliseconds=50),
    )
    store = await SqliteStore.open(folder / f"{orders.service}.db", service=orders.service, clock=clock)
    worker = Worker(
        build(Service.of_module(MODULES[orders.service])),
        Surroundings(
            store=ablations.store_of(orders, store),
            transport=ablations.transport_of(orders, transport),
            clock=clock,
            owner=orders.process,
            chance=random.Random(orders.seed).random,
            # Small, so that a short run has many transactions and many publishes to be killed in.
            limits=Limits(batch=orders.batch, fetch=orders.batch, concurrency=5, relay_batch=orders.batch),
            reach=read_fault(orders.fault),
            dependencies={
                Situation: Situation(
                    process=orders.process,
                    notes=folder / "executions",
                    gate=folder / "gate" if orders.gate else None,
                )
            },
        ),
        migrations=[Migration("effects", TABLE, "situation.py")],
    )
    await worker.start()
    await worker.ended()
