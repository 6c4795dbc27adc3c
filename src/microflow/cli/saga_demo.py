"""The demo: the order saga for real, in five processes, and a web shop that places orders."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import itertools
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from types import ModuleType
from typing import Any

from microflow.caution import WITH_CARE, WITHOUT_CARE
from microflow.cli.demo_ground import Ground, ground
from microflow.cli.flow_tree import FlowTree, span
from microflow.cli.report_lines import json_line
from microflow.cli.screen import Screen
from microflow.cli.stopping import INTERRUPTED
from microflow.cli.supervisor import Child, Line, Supervisor
from microflow.clocks import SystemClock
from microflow.envelopes import seal_root
from microflow.errors import TargetError
from microflow.events import Message, options_of
from microflow.graph import Graph, graph_of, summary
from microflow.log_reader import LogReader
from microflow.partitioner import Partitioner
from microflow.ports import Record, Transport
from microflow.service import Service, build
from microflow.version import __version__

SERVICES = ("orders", "payments", "inventory", "shipping", "customers")
QUIET = 1.0
"""Seconds without a line after the last order ended, until the last letters are written too."""
FAULT_EVERY = 2.0
SLOW_CARDS = {"ORDER_SAGA_SLOW_CARDS": "0.4", "ORDER_SAGA_LOST_ANSWERS": "0.2"}
COPIED_TOPICS = 200
MOST_DEATHS = 2
"""Before a service is through with what it died with: an event that it dies of once more would be given up."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoOptions:
    """`orders`: how many to place (None: until Ctrl-C); `rate`: orders a second; `faults`: make trouble meanwhile.

    `kafka` and `database` are a real log and a real server, if there are any; each service runs in so many `processes`.
    """

    orders: int | None = None
    rate: float = 5.0
    faults: bool = False
    seed: int = 1
    kafka: str | None = None
    database: str | None = None
    processes: int = 1


@dataclass(slots=True)
class Tally:
    """What was seen: ends by order and event id (a repetition has the same id), and what the services report."""

    ends: dict[str, dict[str, str]] = field(default_factory=dict)
    outcomes: Counter[str] = field(default_factory=Counter)
    events: set[str] = field(default_factory=set)
    last_line: float = 0.0


class Demo:
    """One run of the demo, shown on a screen: the live tree for a person, the services' lines for a program."""

    def __init__(self, options: DemoOptions, screen: Screen) -> None:
        self._options = options
        self._screen = screen
        self._random = random.Random(options.seed)
        self._tally = Tally()
        self._placed: set[str] = set()
        self._published: list[Record] = []
        self._faults: Counter[str] = Counter()
        self._deaths: Counter[str] = Counter()
        self._careful: set[str] = set()
        self._saga = saga_folder()
        self._placing = _load(self._saga, "placing")
        self._definitions = [build(Service.of_module(_load(self._saga, name))) for name in SERVICES]
        self._tree = FlowTree(ends=self._placing.ENDS, paint=self._paint)
        self._stopping = asyncio.Event()
        self._leaving = asyncio.Event()
        self._partitioner = Partitioner()

    async def run(self) -> int:
        """Run it; return the exit code: 0 if every order ended once and no money is missing."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, self._interrupt)
        async with ground(self._definitions, kafka=self._options.kafka, database=self._options.database) as here:
            return await self._run_on(here)

    async def _run_on(self, here: Ground) -> int:
        targets = [str(self._saga / f"{name}.py") for name in SERVICES] * self._options.processes
        supervisor = Supervisor(
            targets,
            folder=here.folder,
            environment=here.environment,
            on_line=self._hear,
            on_text=self._hear_text,
            on_death=self._hear_death,
        )
        try:
            self._introduce(graph_of(self._definitions), here)
            began = time.monotonic()
            if not await supervisor.start():
                return 1
            self._note(f"ready in {time.monotonic() - began:.1f} s · Ctrl-C stops")
            async with asyncio.TaskGroup() as group:
                watching = group.create_task(self._watch(here.transport))
                troubling = group.create_task(self._trouble(here.transport, supervisor))
                await self._place_all(here)
                await self._until_ended()
                watching.cancel()
                troubling.cancel()
            took = time.monotonic() - began
            await supervisor.stop()
            if self._leaving.is_set():
                self._note("stopped before every order had ended")
                return INTERRUPTED
            return self._sum_up(await here.money(), took)
        finally:
            await supervisor.stop()

    def _interrupt(self) -> None:
        """First let the orders that were placed come to their ends; asked again, stop."""
        if self._stopping.is_set():
            self._leaving.set()
        self._stopping.set()

    # ── placing orders ────────────────────────────────────────────────────────────────────────────────────────────

    async def _place_all(self, here: Ground) -> None:
        prefix = "order" if self._options.kafka is None else f"order-{here.run}"
        orders = itertools.islice(self._placing.orders(self._options.seed, prefix=prefix), self._options.orders)
        placings = set()
        for order in orders:
            if self._stopping.is_set():
                break
            placings.add(asyncio.create_task(self._place(here.transport, order)))
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), 1 / self._options.rate)
        await asyncio.gather(*placings)

    async def _place(self, transport: Transport, order: Any) -> None:
        self._placed.add(order.order_id)
        began = time.monotonic()
        for publication in sorted(order.publications, key=lambda each: each.after):
            await asyncio.sleep(max(0.0, publication.after.total_seconds() - (time.monotonic() - began)))
            await self._publish(transport, publication.event, flow=order.order_id)

    async def _publish(self, transport: Transport, event: Message, *, flow: str) -> None:
        sealed = seal_root(
            event,
            service="web-shop",
            topic=options_of(type(event)).topic or options_of(type(event)).type,
            now=SystemClock().now(),
            random_bits=self._random.getrandbits,
            correlation_id=flow,
        )
        topics = await transport.topics.describe([sealed.topic])
        assert sealed.key is not None
        partition = self._partitioner.partition(sealed.key, partitions=topics[sealed.topic].partitions)
        record = Record(sealed.topic, partition, sealed.key, sealed.value, sealed.headers)
        await _send(transport, record)
        self._published = [*self._published[-COPIED_TOPICS:], record]

    # ── making trouble ────────────────────────────────────────────────────────────────────────────────────────────

    async def _trouble(self, transport: Transport, supervisor: Supervisor) -> None:
        while self._options.faults:
            await asyncio.sleep(FAULT_EVERY * (0.5 + self._random.random()))
            match self._random.choice(["kill", "kill", "copy", "slow"]):
                case "kill":
                    self._kill(self._random.choice(supervisor.children))
                case "copy" if self._published:
                    await _send(transport, self._random.choice(self._published))
                    self._fault("an event twice", "an event is published a second time")
                case "slow" if self._may_die(payments := supervisor.children[SERVICES.index("payments")]):
                    payments.environment = {} if payments.environment else dict(SLOW_CARDS)
                    self._kill(payments)
                    slow = "slow, and loses answers" if payments.environment else "itself again"
                    self._fault("a change at the card company", f"the card company is {slow}")

    def _may_die(self, child: Child) -> bool:
        return child.ready.is_set() and self._deaths[child.target] < MOST_DEATHS

    def _kill(self, child: Child) -> None:
        if self._may_die(child):
            child.send(signal.SIGKILL)
            self._deaths[child.target] += 1
            self._fault("kill -9", f"kill -9 {child.name}")

    def _fault(self, kind: str, text: str) -> None:
        self._faults[kind] += 1
        self._note(f"⚡ {text}", colour="yellow")

    # ── watching ──────────────────────────────────────────────────────────────────────────────────────────────────

    async def _watch(self, transport: Transport) -> None:
        """Read from the log itself how the orders end: what a killed service had no time to say is there, too."""
        topics = {
            topic
            for each in self._definitions
            for event, topic in each.emitted.items()
            if self._is_end(options_of(event).type)
        }
        async with LogReader.open(transport, topics) as reader:
            while True:
                for record in await reader.read(wait=timedelta(seconds=1)):
                    self._note_end({name: value.decode() for name, value in record.headers})

    def _is_end(self, event_type: str) -> bool:
        return event_type in self._placing.ENDS

    def _note_end(self, headers: Mapping[str, str]) -> None:
        if self._is_end(headers["ce_type"]):
            self._tally.ends.setdefault(headers["ce_correlationid"], {})[headers["ce_id"]] = headers["ce_type"]

    async def _until_ended(self) -> None:
        while not self._leaving.is_set() and (self._placed - self._tally.ends.keys() or self._busy()):
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._leaving.wait(), 0.05)

    def _busy(self) -> bool:
        return time.monotonic() - self._tally.last_line < QUIET

    def _hear(self, child: Child, line: Line) -> None:
        self._hear_of_care(child.target, str(line.get("message", "")))
        if "outcome" not in line:
            return
        self._tally.last_line = time.monotonic()
        self._tally.outcomes[line["outcome"]] += 1
        self._tally.events.update((line["event"], *(each["id"] for each in line["emitted"])))
        if self._screen.json:
            self._screen.line(json_line(line))
        else:
            for text in self._tree.lines(line):
                self._screen.line(text)

    def _hear_of_care(self, service: str, message: str) -> None:
        if WITH_CARE in message:
            self._careful.add(service)
        elif WITHOUT_CARE in message:
            self._careful.discard(service)
        if (WITHOUT_CARE in message or message == "ready") and service not in self._careful:
            self._deaths[service] = 0

    def _hear_text(self, child: Child, text: str) -> None:
        if text:
            self._note(f"{child.name}: {text}", colour="bright_black")

    def _hear_death(self, child: Child, code: int) -> None:
        if code != -signal.SIGKILL:
            self._note(f"{child.name} ended with {code}", colour="red")

    # ── words ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def _introduce(self, graph: Graph, here: Ground) -> None:
        self._note(f"microflow {__version__} · demo order_saga · {here.words} ({here.kept})")
        self._note(f"  {summary(graph)}")

    def _note(self, text: str, *, colour: str = "") -> None:
        if self._screen.json:
            self._screen.line(json_line({"message": text.strip()}))
        else:
            self._screen.line(self._paint(text, colour) if colour else text)

    def _paint(self, text: str, colour: str) -> str:
        return self._screen.style(text, fg=colour)

    def _sum_up(self, money: Mapping[str, Decimal], took: float) -> int:
        """Say how it went; 0 if every order ended exactly once and the money adds up."""
        ends = self._tally.ends
        endings = Counter(ending for each in ends.values() for ending in each.values())
        open_orders = sorted(self._placed - ends.keys())
        doubled = sorted(order for order, each in ends.items() if len(each) > 1)
        if self._screen.json:
            self._screen.line(
                json_line(
                    {
                        "message": "summary",
                        "orders": len(self._placed),
                        "endings": dict(endings),
                        "open": open_orders,
                        "ended_twice": doubled,
                        "seconds": round(took, 1),
                        "events": len(self._tally.events),
                        "outcomes": dict(self._tally.outcomes),
                        "faults": dict(self._faults),
                        "money": {name: str(amount) for name, amount in money.items()},
                    }
                )
            )
        else:
            self._screen.line("")
            for text in self._summary_lines(endings, open_orders, doubled, money, took):
                self._screen.line(text)
        return 0 if not open_orders and not doubled and _adds_up(money) else 1

    def _summary_lines(
        self,
        endings: Counter[str],
        open_orders: Collection[str],
        doubled: Collection[str],
        money: Mapping[str, Decimal],
        took: float,
    ) -> list[str]:
        outcomes = self._tally.outcomes
        how = " · ".join(f"{number} {ending.removeprefix('Order').lower()}" for ending, number in endings.most_common())
        good, bad = self._paint("✔", "green"), self._paint("✗", "red")
        lines = [
            f"{len(self._placed)} orders in {span(took * 1000)} · {how}",
            f"{len(self._tally.events)} events · {outcomes['done']} executions · {outcomes['retry']} retries · "
            f"{outcomes['dead']} dead letters",
        ]
        if self._faults:
            lines.append("faults: " + " · ".join(f"{number} × {kind}" for kind, number in self._faults.items()))
        lines.append(
            f"{good} every order ended exactly once"
            if not open_orders and not doubled
            else f"{bad} without an end: {_listed(open_orders)} · ended twice: {_listed(doubled)}"
        )
        lines.append(
            f"{good if _adds_up(money) else bad} money: {money['taken']} taken = {money['kept']} kept + "
            f"{money['refunded']} refunded"
        )
        return lines


def _listed(orders: Collection[str]) -> str:
    return ", ".join(orders) or "none"


def saga_folder() -> Path:
    """Where the order saga is: in the installed package, or in the checkout that is installed for development."""
    package = Path(__file__).parents[1]
    for folder in (package / "examples" / "order_saga", package.parents[1] / "examples" / "order_saga"):
        if (folder / "orders.py").exists():
            return folder
    raise TargetError("The order saga is not installed.", fix="pip install --force-reinstall microworkflow")


def _load(folder: Path, name: str) -> ModuleType:
    qualified = f"microflow_demo_{name}"
    if qualified not in sys.modules:
        spec = importlib.util.spec_from_file_location(qualified, folder / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[qualified] = module
        spec.loader.exec_module(module)
    return sys.modules[qualified]


async def _send(transport: Transport, record: Record) -> None:
    for error in await transport.publish([record]):
        if error is not None:
            raise error


def _adds_up(money: Mapping[str, Decimal]) -> bool:
    return money["taken"] == money["kept"] + money["refunded"]
