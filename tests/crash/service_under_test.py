"""A service in a process of its own, run until it is killed."""

from __future__ import annotations

import asyncio
import importlib
import logging
import random
import signal
import sys
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from types import FrameType
from typing import Any

from microflow.clocks import SystemClock
from microflow.database_clock import DatabaseClock
from microflow.fault_injection import read_fault
from microflow.limits import Limits
from microflow.ports import Clock, Migration, Store, Transport
from microflow.service import Service, build
from microflow.stores.postgres import PostgresStore
from microflow.stores.sqlite import SqliteStore
from microflow.transports.kafka import ClientSettings, KafkaTransport
from microflow.transports.local import LocalTransport
from microflow.worker import Surroundings, Worker
from tests.crash import ablations, names
from tests.crash.orders import Orders
from tests.crash.readings import PARTITIONS
from tests.crash.situation import POSTGRES, SQLITE, Situation
from tests.crash.sparing import Sparing


def run(orders: Orders) -> None:
    """Run one service until the process is killed; its log goes to standard error."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    names.begin_with(orders.prefix)
    ablations.install(orders)
    asyncio.run(serve(orders))


def tell_tasks() -> None:
    """Write where every task waits, for whoever wonders why nothing goes on."""
    for task in asyncio.all_tasks():
        frames = " < ".join(f"{frame.f_code.co_qualname}:{frame.f_lineno}" for frame in _stack(task))
        sys.stderr.write(f"task {task.get_name()}: {frames}\n")


def _stack(task: asyncio.Task[Any]) -> Iterator[FrameType]:
    """The frames of a task, outermost first: those that `Task.get_stack` leaves out, too."""
    waits: Any = task.get_coro()
    while waits is not None:
        frame = getattr(waits, "cr_frame", None) or getattr(waits, "gi_frame", None) or getattr(waits, "ag_frame", None)
        if frame is not None:
            yield frame
        waits = (
            getattr(waits, "cr_await", None) or getattr(waits, "gi_yieldfrom", None) or getattr(waits, "ag_await", None)
        )


async def serve(orders: Orders) -> None:
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, tell_tasks)
    folder = Path(orders.folder)
    machine = SteppingClock(folder / f"clock-{orders.process}") if orders.clock_steps else SystemClock()
    definition = build(Service.of_module(importlib.import_module(f"tests.crash.{orders.service}")))
    transport = await open_transport(orders, machine)
    store = await open_store(orders, definition.name, machine)
    clock = await DatabaseClock.read(store.time, machine=machine) if orders.database else machine
    sparing = Sparing(read_fault(orders.fault))
    worker = Worker(
        definition,
        Surroundings(
            store=ablations.store_of(orders, store),
            transport=ablations.transport_of(orders, transport),
            clock=clock,
            owner=orders.process,
            chance=random.Random(orders.seed).random,
            # Small, so that a short run has many transactions and many publishes to be killed in.
            limits=Limits(
                batch=orders.batch,
                fetch=orders.batch,
                concurrency=5,
                relay_batch=orders.publishes,
                from_memory=not orders.scans_only,
            ),
            reach=sparing,
            dependencies={
                Situation: Situation(
                    process=orders.process,
                    notes=folder / "executions",
                    gate=folder / "gate" if orders.gate else None,
                    dialect=POSTGRES if orders.database else SQLITE,
                    long=orders.long,
                )
            },
        ),
        migrations=[Migration("effects", (POSTGRES if orders.database else SQLITE).table, "situation.py")],
    )
    sparing.worker = worker
    await worker.start()
    await worker.ended()


class SteppingClock(SystemClock):
    """The clock of a machine that somebody sets: it is ahead by the seconds that a file says."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def now(self) -> datetime:
        ahead = float(self._file.read_text(encoding="utf-8") or 0) if self._file.exists() else 0.0
        return super().now() + timedelta(seconds=ahead)


async def open_transport(orders: Orders, clock: Clock) -> Transport:
    """The log that the chain stands on."""
    if orders.kafka:
        settings = ClientSettings(
            servers=orders.kafka, session_timeout_ms=round(orders.session_timeout * 1000), heartbeat_interval_ms=100
        )
        if orders.patience:
            patience = round(orders.patience * 1000)
            settings = replace(settings, request_timeout_ms=patience, delivery_timeout_ms=patience)
        return await KafkaTransport.open(settings)
    return LocalTransport.open(
        Path(orders.folder) / "log.db",
        clock=clock,
        partitions=PARTITIONS,
        session_timeout=timedelta(seconds=orders.session_timeout),
        heartbeat=timedelta(milliseconds=50),
    )


async def open_store(orders: Orders, service: str, clock: Clock) -> Store:
    """The service's database."""
    if orders.database:
        return await PostgresStore.open(orders.database, service=service, clock=clock, lanes=orders.lanes)
    return await SqliteStore.open(Path(orders.folder) / f"{orders.service}.db", service=service, clock=clock)
