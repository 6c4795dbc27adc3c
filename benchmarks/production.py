"""Measures services on real Kafka and PostgreSQL beside their neighbours, everything in one run on one machine.

    make bench-production                                  about ten minutes
    make bench-production ARGUMENTS=--quick                to see that it runs; its figures say nothing
    make bench-production ARGUMENTS="--only microflow-2 faststream-batch"
    make bench-production ARGUMENTS="--instead old-snapshot"
    make bench-production ARGUMENTS="--instead long-run"   a million events of one service: some minutes

What is compared, and how, is told in benchmarks/README.md. Prints a table, and the same figures as a line of JSON.
The servers are those of MICROFLOW_KAFKA and MICROFLOW_DATABASE, whose role may create databases.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import sys
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from flow import BenchmarkError
from hops import Hops, measure_hops
from long_run import measure_long_run
from machine import describe_machine
from old_snapshot import measure_beside_snapshot
from real_latency import CALLED, RAW, measure_real_latency
from scenery import Scenery, open_scenery

GOALS: Mapping[str, tuple[str, float]] = {
    "bare-loop": ("microflow-2", 0.5),
    "faststream-default": ("microflow-2", 10),
    "faststream-at-least-once": ("microflow-2", 20),
    "faststream-batch": ("microflow-2", 1.1),
    "faststream-by-hand": ("microflow-2", 60),
    "faststream-outbox": ("microflow-2", 130),
    "dbos-threads": ("microflow-2", 450),
    "dbos-queue": ("microflow-2", 450),
    "procrastinate": ("microflow-2", 130),
}
"""Which of ours is to be how many times as fast as a neighbour."""
BESIDE_SNAPSHOT = 0.9
"""How fast a relay is to be beside an old snapshot, compared to one in a fresh table."""


@dataclass(frozen=True, slots=True)
class System:
    """What is measured: a module of `peers`, its variant, and over how many events."""

    name: str
    module: str
    variant: str
    events: int


SYSTEMS = (
    System("bare-loop", "bare_loop", "", 100_000),
    System("microflow-1", "microflow_service", "1", 100_000),
    System("microflow-2", "microflow_service", "2", 100_000),
    System("microflow-4", "microflow_service", "4", 100_000),
    System("faststream-default", "faststream_bare", "default", 10_000),
    System("faststream-at-least-once", "faststream_bare", "at-least-once", 5_000),
    System("faststream-batch", "faststream_bare", "batch", 100_000),
    System("faststream-by-hand", "faststream_by_hand", "", 2_000),
    System("faststream-outbox", "outbox_library", "", 1_000),
    System("dbos-threads", "dbos_chain", "threads", 300),
    System("dbos-queue", "dbos_chain", "queue", 300),
    System("procrastinate", "procrastinate_jobs", "", 1_000),
)


async def measure(systems: Sequence[System], *, rounds: int, latency_seconds: float) -> dict[str, Any]:
    async with open_scenery() as scenery:
        describe_machine()
        await scenery.preload(max(each.events for each in systems))
        await measure_hops(
            scenery, "bare_loop", "", events=min(20_000, scenery.preloaded)
        )  # the broker's code gets warm
        found: dict[str, list[Hops]] = {system.name: [] for system in systems}
        for _ in range(rounds):
            for system in systems:
                hops = await measure_hops(scenery, system.module, system.variant, events=system.events)
                found[system.name].append(hops)
                write(f"  … {system.name:<26} {hops.rate:>10,.0f} events/s")
        figures = _tell_hops(found) | _tell_ratios(found)
        if latency_seconds:
            figures |= await _latency(scenery, seconds=latency_seconds)
    return figures


def _tell_hops(found: Mapping[str, Sequence[Hops]]) -> dict[str, Any]:
    write(
        "\nOne event = consume, dedupe, upsert one row, emit one, commit, publish (without a database: consume, emit)"
    )
    write(f"  {'':<26} {'events/s':>10}   {'smallest':>10} {'largest':>10}   CPU µs/event: itself, PostgreSQL, broker")
    figures = {}
    for name, hops in found.items():
        rates = [each.rate for each in hops]
        cpu = [statistics.median(getattr(each, part) for each in hops) for part in ("own", "postgres", "broker")]
        write(
            f"  {name:<26} {statistics.median(rates):>10,.0f}   {min(rates):>10,.0f} {max(rates):>10,.0f}   "
            + ", ".join(f"{each * 1e6:,.0f}" for each in cpu)
        )
        figures[name] = {"rates": rates, "cpu": cpu}
    return figures


def _tell_ratios(found: Mapping[str, Sequence[Hops]]) -> dict[str, Any]:
    write("\nRatios, round by round: median (smallest to largest), and the goal")
    figures = {}
    for theirs, (ours, goal) in GOALS.items():
        if not found.get(theirs) or not found.get(ours):
            continue
        ratios = [mine.rate / other.rate for mine, other in zip(found[ours], found[theirs], strict=True)]
        median = statistics.median(ratios)
        verdict = "reached" if median >= goal else "missed"
        spread = f"({min(ratios):.2f} to {max(ratios):.2f})"
        write(f"  {f'{ours} / {theirs}':<40} {median:>8.2f}   {spread:<24} {goal:g}: {verdict}")
        figures[f"{ours} / {theirs}"] = ratios
    return figures


async def _latency(scenery: Scenery, *, seconds: float) -> dict[str, Any]:
    latency = await measure_real_latency(scenery, rate=200, seconds=seconds)
    write("\nLatency at 200 events/s, in ms: p50, p99")
    for name, (p50, p99) in latency.items():
        write(f"  {name:<46} {p50:.2f}   {p99:.2f}")
    raw, ours = latency[RAW], latency[CALLED]
    p50 = "reached" if ours[0] <= raw[0] + 0.2 else "missed"
    p99 = "reached" if ours[1] <= 2 * raw[1] else "missed"
    write(f"  goals: p50 at most the raw one + 0.2 ms: {p50}; p99 at most twice the raw one: {p99}")
    return {"latency": latency}


async def measure_relays(*, rounds: int, dead: int, rows: int) -> dict[str, Any]:
    """A relay beside an old snapshot, and the same in a fresh table."""
    async with open_scenery() as scenery:
        describe_machine()
        found = await measure_beside_snapshot(scenery, rounds=rounds, dead=dead, rows=rows)
    ratio = statistics.median(found.beside_snapshot) / statistics.median(found.fresh)
    write(f"\nA relay, rows/s, beside a snapshot that keeps {dead:,} dead rows and more: median (smallest to largest)")
    for name, rates in (("fresh", found.fresh), ("beside the snapshot", found.beside_snapshot)):
        write(f"  {name:<26} {statistics.median(rates):>10,.0f}   ({min(rates):,.0f} to {max(rates):,.0f})")
    write(f"  ratio {ratio:.2f}, goal {BESIDE_SNAPSHOT:g}: {'reached' if ratio >= BESIDE_SNAPSHOT else 'missed'}")
    return {"fresh": found.fresh, "beside_snapshot": found.beside_snapshot, "dead": dead, "ratio": ratio}


async def measure_growth(*, events: int) -> dict[str, Any]:
    """One service and a backlog: the rate of each tenth, and what becomes of the memory."""
    async with open_scenery() as scenery:
        describe_machine()
        await scenery.preload(events)
        run = await measure_long_run(scenery, "2", events=events)
    write(f"\n{events:,} events of one service with two lanes, all in the topic when it began")
    memory = [each / 2**20 for each in run.memory]
    write("  events/s of each tenth        " + ", ".join(f"{rate:,.0f}" for rate in run.rates))
    write(f"  the last tenth over the first {run.rates[-1] / run.rates[0]:.2f}")
    write("  memory after each, MiB        " + ", ".join(f"{each:.1f}" for each in memory))
    write(f"  its slope after the third     {run.slope:.2f} bytes per event")
    return asdict(run)


def write(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small sizes: only to see that it runs")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--latency", type=float, default=20, metavar="SECONDS", help="0 leaves it out")
    parser.add_argument("--only", nargs="+", choices=[system.name for system in SYSTEMS], metavar="SYSTEM")
    parser.add_argument(
        "--instead", choices=["old-snapshot", "long-run"], help="measure this, and none of the neighbours"
    )
    arguments = parser.parse_args()
    if not {"MICROFLOW_KAFKA", "MICROFLOW_DATABASE"} <= os.environ.keys():
        parser.error(
            "MICROFLOW_KAFKA and MICROFLOW_DATABASE must name the servers;  make bench-production  starts some"
        )
    systems = [each for each in SYSTEMS if not arguments.only or each.name in arguments.only]
    rounds, latency = arguments.rounds, arguments.latency
    if arguments.quick:
        systems = [replace(each, events=max(each.events // 50, 20)) for each in systems]
        rounds, latency = 1, min(latency, 2)
    work: Coroutine[Any, Any, dict[str, Any]]
    if arguments.instead == "old-snapshot":
        work = measure_relays(
            rounds=rounds, dead=4_000 if arguments.quick else 500_000, rows=2_000 if arguments.quick else 50_000
        )
    elif arguments.instead == "long-run":
        work = measure_growth(events=20_000 if arguments.quick else 1_000_000)
    else:
        work = measure(systems, rounds=rounds, latency_seconds=latency)
    try:
        figures = asyncio.run(work)
    except BenchmarkError as error:
        sys.stderr.write(f"no figures: {error}\n")
        return 1
    write(f"\n{json.dumps(figures)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
