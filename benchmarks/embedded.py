"""Measures the embedded default (files, every commit synced, every guarantee on) beside DBOS on SQLite, in one run.

    make bench                                     about two minutes
    make bench ARGUMENTS="--events 1000000"        the memory part over a million events
    make bench ARGUMENTS=--quick                   half a minute, to see that it runs; its figures say nothing

What is compared, and how, is told in benchmarks/README.md. Prints a table, and the same figures as a line of JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import json
import os
import platform
import sqlite3
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from floor import measure_floor
from flow import BenchmarkError
from latency import measure_latency
from memory import measure_growth
from throughput import Throughput, measure_chain
from workflows import Setup, fastest, measure_workflows

MEBIBYTE = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much of everything: `chains` and `workflows` in each of the `rounds`, `events` in the memory part."""

    rounds: int
    chains: int
    workflows: int
    rate: int
    seconds: float
    events: int


FULL = Sizes(rounds=5, chains=10_000, workflows=200, rate=200, seconds=15, events=100_000)
QUICK = Sizes(rounds=1, chains=1_000, workflows=20, rate=100, seconds=2, events=4_000)


@dataclass(frozen=True, slots=True)
class Spread:
    """A figure over the rounds."""

    median: float
    smallest: float
    largest: float

    @classmethod
    def of(cls, figures: Sequence[float]) -> Spread:
        return cls(statistics.median(figures), min(figures), max(figures))

    def __format__(self, spec: str) -> str:
        return f"{format(self.median, spec)}   ({format(self.smallest, spec)} to {format(self.largest, spec)})"


class Table:
    """Prints a line for each figure as soon as it is known, and keeps them for the line of JSON."""

    def __init__(self) -> None:
        self.figures: dict[str, Any] = {}

    def title(self, text: str) -> None:
        _write(f"\n{text}")

    def line(self, name: str, value: str, **figures: Any) -> None:
        _write(f"  {name:<46} {value}")
        self.figures |= {key: asdict(each) if isinstance(each, Spread) else each for key, each in figures.items()}


async def measure(table: Table, sizes: Sizes, scratch: Path, *, with_dbos: bool) -> None:
    _machine(table, scratch)
    floor = await measure_floor(scratch, records=sizes.chains)
    table.title("The floor: records published to the local log and fetched, no service, no database between")
    table.line("records/s", f"{floor.rate:,.0f}", floor_rate=floor.rate)
    table.line("CPU per record", f"{floor.cpu * 1e6:.0f} µs", floor_cpu=floor.cpu)
    await _throughput(table, sizes, scratch, with_dbos=with_dbos)
    await _latency(table, sizes, scratch)
    await _growth(table, sizes, scratch)


def _machine(table: Table, scratch: Path) -> None:
    sync = _sync_time(scratch)
    table.title("The machine")
    load = os.getloadavg()[0]
    versions = f"{platform.python_version()}, {sqlite3.sqlite_version}, {platform.system()} {platform.machine()}"
    table.line("Python, SQLite, system", versions)
    table.line("processors, load when it began", f"{os.cpu_count()}, {load:.1f}", load=load)
    table.line("a write of 4 KiB synced to its disk", f"{sync * 1e3:.2f} ms (median)", sync=sync)


def _sync_time(scratch: Path) -> float:
    """The median time of an fsync, in seconds: all durable commits of everybody wait for some of them."""
    times = []
    with tempfile.TemporaryFile(dir=scratch) as file:
        for _ in range(50):
            file.write(bytes(4096))
            file.flush()
            began = time.perf_counter()
            os.fsync(file.fileno())
            times.append(time.perf_counter() - began)
    return statistics.median(times)


async def _throughput(table: Table, sizes: Sizes, scratch: Path, *, with_dbos: bool) -> None:
    rivals = await _choose_rivals(table, sizes, scratch) if with_dbos else []
    ours: list[Throughput] = []
    theirs: dict[Setup, list[Throughput]] = {setup: [] for setup in rivals}
    for _ in range(sizes.rounds):
        ours.append(await measure_chain(scratch, chains=sizes.chains))
        for setup in rivals:
            theirs[setup].append(await measure_workflows(scratch, setup, workflows=sizes.workflows))
    together = [await measure_chain(scratch, chains=sizes.chains, together=True) for _ in range(min(sizes.rounds, 2))]

    table.title(f"A chain of two hops: two services, two databases, {sizes.chains:,} chains, {sizes.rounds} rounds")
    rate = Spread.of([each.rate for each in ours])
    cpu = Spread.of([each.cpu / 2 * 1e6 for each in ours])
    table.line("chains/s, each service its own process", f"{rate:,.0f}", chains=rate)
    table.line("events/s", f"{Spread.of([each.rate * 2 for each in ours]):,.0f}")
    table.line("CPU per event, in µs", f"{cpu:.0f}", cpu_per_event_us=cpu)
    one = Spread.of([each.rate for each in together])
    table.line("chains/s, both services in one process", f"{one:,.0f}", chains_one_process=one)
    for setup in rivals:
        _compare(table, setup, ours, theirs[setup])


async def _choose_rivals(table: Table, sizes: Sizes, scratch: Path) -> list[Setup]:
    """DBOS in the fastest of its ways as it comes, and with its file switched to a write-ahead log."""
    table.title("DBOS, a workflow of two steps that do nothing, in workflows/s: the fastest way of each is compared")
    rivals = []
    for tuned in (False, True):
        setup, found = await fastest(scratch, tuned=tuned, workflows=max(sizes.workflows // 2, 10))
        rivals.append(setup)
        for way, throughput in found.items():
            table.line(str(Setup(way, tuned)), f"{throughput.rate:,.0f}")
    return rivals


def _compare(table: Table, setup: Setup, ours: Sequence[Throughput], theirs: Sequence[Throughput]) -> None:
    key = "dbos_tuned" if setup.tuned else "dbos"
    rate = Spread.of([each.rate for each in theirs])
    ratio = Spread.of([mine.rate / other.rate for mine, other in zip(ours, theirs, strict=True)])
    cpu = Spread.of([other.cpu / mine.cpu for mine, other in zip(ours, theirs, strict=True)])
    table.title(f"Beside DBOS ({setup}), round by round")
    table.line("workflows/s", f"{rate:,.0f}", **{key: rate})
    goal = "" if setup.tuned else f"   goal 50: {'reached' if ratio.median >= 50 else 'missed'}"
    table.line("chains/s over workflows/s", f"{ratio:.1f}{goal}", **{f"{key}_ratio": ratio})
    table.line("its CPU for a workflow over ours for a chain", f"{cpu:.1f}", **{f"{key}_cpu_ratio": cpu})


async def _latency(table: Table, sizes: Sizes, scratch: Path) -> None:
    latency = await measure_latency(scratch, rate=sizes.rate, seconds=sizes.seconds)
    table.title(f"From commit to downstream at {sizes.rate} events/s, in ms: p50, p99, largest")
    for name, each in (
        ("handler called", latency.called),
        ("handled and committed", latency.committed),
        ("the benchmark behind its own schedule", latency.late),
    ):
        table.line(name, f"{each.p50:.1f}   {each.p99:.1f}   {each.largest:.1f}")
    table.line("goal: handled, p50 at most 5 ms", "reached" if latency.committed.p50 <= 5 else "missed")
    table.figures["latency_ms"] = asdict(latency)


async def _growth(table: Table, sizes: Sizes, scratch: Path) -> None:
    growth = await measure_growth(scratch, events=sizes.events)
    begin, end = growth.begin, growth.end
    table.title(
        f"Over {growth.events:,} events, with a retention of 10 s: after {begin.events:,} events, and at the end"
    )
    for name in ("memory", "log", "databases"):
        before, after = getattr(begin, name) / MEBIBYTE, getattr(end, name) / MEBIBYTE
        what = {"memory": "resident memory, both processes", "log": "the log's files", "databases": "both databases"}
        table.line(what[name], f"{before:.1f} MiB   {after:.1f} MiB")
    table.line("slope of the memory", f"{growth.slope:.1f} bytes per event", growth=asdict(growth))


@contextmanager
def _scratch(folder: Path | None) -> Iterator[Path]:
    """A folder on a disk: the temporary one may be in memory, where nothing is ever synced."""
    with tempfile.TemporaryDirectory(prefix="microflow-benchmark-", dir=folder or Path.cwd()) as scratch:
        yield Path(scratch)


def _sizes(arguments: argparse.Namespace) -> Sizes:
    sizes = QUICK if arguments.quick else FULL
    given = {name: getattr(arguments, name) for name in asdict(sizes) if getattr(arguments, name) is not None}
    return Sizes(**{**asdict(sizes), **given})


def _write(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small sizes: only to see that it runs")
    parser.add_argument("--without-dbos", action="store_true", help="leave the comparison out")
    parser.add_argument(
        "--folder", type=Path, help="where the files lie while it runs (default: the working directory)"
    )
    for name, kind in Sizes.__annotations__.items():
        parser.add_argument(
            f"--{name}", type=float if kind == "float" else int, help=f"default {getattr(FULL, name):,}"
        )
    arguments = parser.parse_args()
    with_dbos = not arguments.without_dbos
    if with_dbos and importlib.util.find_spec("dbos") is None:
        _write("*** DBOS IS NOT INSTALLED: nothing is compared with it. `make bench` installs it. ***")
        with_dbos = False
    table = Table()
    try:
        with _scratch(arguments.folder) as scratch:
            asyncio.run(measure(table, _sizes(arguments), scratch, with_dbos=with_dbos))
    except BenchmarkError as error:
        sys.stderr.write(f"no figures: {error}\n")
        return 1
    _write(f"\n{json.dumps(table.figures)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
