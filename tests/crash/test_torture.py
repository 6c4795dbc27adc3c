"""The long harness: many seeds, each with many deaths and pauses at random points of random processes.

`make torture`; the number of seeds is `MICROFLOW_SEEDS`. Prints one table at the end.
"""

from __future__ import annotations

import itertools
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import get_args

import pytest

from microflow.faults import FaultPoint
from tests.crash import checker
from tests.crash.harness import Chain, Nursery, times_reached
from tests.crash.readings import Snapshot

SEEDS = int(os.environ.get("MICROFLOW_SEEDS", "60"))
POINTS = get_args(FaultPoint)
ORDERS = 150
WAVES = 6
LIVES = 8
PAUSE = 2.5
"""Seconds for which a process is stopped: longer than its session, so that others take over."""


@dataclass(slots=True)
class Tally:
    """What all seeds together have come to."""

    kills: Counter[str] = field(default_factory=Counter)
    pauses: int = 0
    events: int = 0
    executions: int = 0
    repeated: int = 0
    records_repeated: int = 0
    violations: Counter[str] = field(default_factory=Counter)
    recoveries: list[float] = field(default_factory=list)
    deck: Iterator[FaultPoint] = field(default_factory=lambda: itertools.cycle(POINTS))
    """Points are dealt in turn, so that none is left out by chance."""

    def table(self) -> str:
        took = sorted(self.recoveries)
        rows = {
            "events handled": self.events,
            "processes killed": self.kills.total(),
            "processes paused": self.pauses,
            "executions": self.executions,
            "executions repeated": self.repeated,
            "records published again": self.records_repeated,
            **{invariant: self.violations[invariant] for invariant in get_args(checker.Invariant)},
            "drained after the last fault, median": f"{took[len(took) // 2]:.2f} s",
            "drained after the last fault, longest": f"{took[-1]:.2f} s",
        }
        lines = [f"{name:<40} {value:>10}" for name, value in rows.items()]
        points = [f"  killed {point:<32} {self.kills[point]:>10}" for point in POINTS]
        return "\n".join(["", *lines, *points])


@pytest.mark.torture
@pytest.mark.timeout(3600)
def test_many_deaths_and_pauses_break_no_promise(
    nursery: Nursery, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tally = Tally()

    for seed in range(SEEDS):
        folder = tmp_path / str(seed)
        folder.mkdir()
        with Chain(nursery, folder, seed=seed) as chain:
            torture(chain, random.Random(seed), tally)

    with capsys.disabled():
        print(tally.table())  # noqa: T201
    assert not tally.violations
    assert set(tally.kills) == set(POINTS)


def torture(chain: Chain, chance: random.Random, tally: Tally) -> None:
    """One seed: orders come in waves while processes die, are paused and come back under new names."""
    waves = [chain.orders(ORDERS // WAVES) for _ in range(WAVES)]
    # Who joins later takes partitions away from who is there.
    joining = [(service, slot) for slot in range(2) for service in checker.SERVICES]
    for number, wave in enumerate(waves):
        for service, slot in joining[:2] if number in {0, WAVES // 2} else ():
            joining.remove((service, slot))
            if slot == 0 or chance.random() < 0.6:
                _start(chain, chance, tally, service, slot)
        chain.publish(wave)
        _go_on(chain, tally, until=time.monotonic() + chance.uniform(0.05, 0.6))
    chain.publish(chain.strange())
    _go_on(chain, tally, until=time.monotonic() + 1)
    for process in chain.processes:  # from here on there are no faults any more
        if chain.stopped(process):
            chain.signal(process, signal.SIGCONT)
        process.faults.clear()
        service = process.orders.service
        chain.wait_until(lambda: not chain.has_to_spare(service), f"{service} is through with what died with it")  # noqa: B023
        chain.end(process)
        chain.revive(process)
    ended = time.monotonic()
    snapshot = chain.run_until_drained()
    tally.recoveries.append(time.monotonic() - ended)
    _count(chain, snapshot, tally)


def _start(chain: Chain, chance: random.Random, tally: Tally, service: str, slot: int) -> None:
    faults = [_fault(next(tally.deck), chance) for _ in range(chance.randint(1, LIVES))]
    lanes = chance.choice((1, 1, 2))
    orders = chain.order(service, slot, fault=faults[0], lanes=lanes, seed=chance.getrandbits(30))
    chain.start(orders, then=faults[1:])


def _go_on(chain: Chain, tally: Tally, *, until: float) -> None:
    """Revive what died, and let what is paused go on after a while."""
    paused: dict[int, float] = {}
    while time.monotonic() < until or any(chain.stopped(process) for process in chain.processes):
        for process in chain.reap():
            tally.kills[process.orders.fault.rpartition(":")[0]] += 1
            # Under its old name it still has the lease of its outbox; under a new one it waits until that is over.
            name = process.name if process.lives % 3 else f"{process.name.partition('.')[0]}.{process.lives}"
            chain.revive(process, name=name)
        for process in filter(chain.stopped, chain.processes):
            if process.pid not in paused:
                paused[process.pid] = time.monotonic() + PAUSE
                tally.pauses += 1
            elif time.monotonic() > paused[process.pid]:
                chain.signal(process, signal.SIGCONT)
                del paused[process.pid]
        time.sleep(0.01)


def _fault(point: FaultPoint, chance: random.Random) -> str:
    action = ":stop" if chance.random() < 0.1 else ""
    return f"{point}:{chance.randint(1, times_reached(point))}{action}"


def _count(chain: Chain, snapshot: Snapshot, tally: Tally) -> None:
    executions = chain.executions()
    tally.executions += len(executions)
    tally.repeated += len(executions) - len(set(executions))
    tally.events += sum(len(tables.effects) + len(tables.dead) for tables in snapshot.tables.values())
    tally.records_repeated += len(snapshot.log) - len({(record.source, record.id) for record in snapshot.log})
    violations = checker.check(snapshot)
    tally.violations.update(violation.invariant for violation in violations)
    assert not violations, f"{violations[:5]} in {chain.folder}"
