"""Memory and files over many events: the processes' resident memory, and how large log and databases grow."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from flow import Chain, running_chain
from machine import resident

RETENTION = timedelta(seconds=10)
"""Short, so that log and inboxes forget within the run what they would forget after a week."""
AHEAD = 4_000
"""Chains published and not ended: few enough for none to be forgotten before it is read."""
SAMPLES = 200
WARM_UP = 0.3


@dataclass(frozen=True, slots=True)
class Sample:
    """Bytes, after so many events."""

    events: int
    memory: int
    log: int
    databases: int


@dataclass(frozen=True, slots=True)
class Growth:
    """What was there after the warm-up and at the end, in bytes, and the memory's slope in bytes for each event."""

    events: int
    begin: Sample
    end: Sample
    slope: float


async def measure_growth(scratch: Path, *, events: int) -> Growth:
    """Handle so many events (two for each chain) with a steady backlog, looking now and then."""
    samples: list[Sample] = []
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        async with running_chain(Path(folder), retention=RETENTION) as chain:

            def look() -> None:
                if chain.handled() >= len(samples) * events / SAMPLES:
                    samples.append(_sample(chain))

            while chain.published < events // 2:
                await chain.publish(min(500, events // 2 - chain.published))
                await chain.until_handled(2 * (chain.published - AHEAD), look=look)
                look()
            await chain.until_handled(events // 2 * 2, look=look)
            samples.append(_sample(chain))
            await chain.stop()
            chain.check()
    counted = samples[int(len(samples) * WARM_UP) :]
    return Growth(events=events, begin=counted[0], end=counted[-1], slope=_slope(counted))


def _sample(chain: Chain) -> Sample:
    return Sample(
        events=chain.handled(),
        memory=sum(resident(process.process.pid) for process in chain.processes),
        log=_size(chain.folder, "log"),
        databases=_size(chain.folder, "first") + _size(chain.folder, "second"),
    )


def _size(folder: Path, name: str) -> int:
    return sum(path.stat().st_size for path in folder.glob(f"{name}.db*") if path.is_file())


def _slope(samples: Sequence[Sample]) -> float:
    if len(samples) < 2:
        return 0.0
    return statistics.linear_regression([each.events for each in samples], [each.memory for each in samples]).slope
