"""From commit to handled downstream, while events arrive at a steady rate whether or not the last one is done."""

from __future__ import annotations

import asyncio
import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flow import Chain, running_chain

WARM_UP = 0.2


@dataclass(frozen=True, slots=True)
class Percentiles:
    """Milliseconds."""

    p50: float
    p99: float
    largest: float


@dataclass(frozen=True, slots=True)
class Latency:
    """From the first service's commit until the second one's handler is called, and until its effects are committed;
    `late`: how far the benchmark itself was behind its schedule."""

    called: Percentiles
    committed: Percentiles
    late: Percentiles


async def measure_latency(scratch: Path, *, rate: int, seconds: float) -> Latency:
    """Publish `rate` events a second for so long, on schedule; the first fifth is warm-up and not counted."""
    count = int(rate * seconds)
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        async with running_chain(Path(folder), instants=True) as chain:
            late = await _publish_on_schedule(chain, count, rate=rate)
            await chain.until_handled(2 * count)
            await chain.stop()
            chain.check()
        first = _read(Path(folder) / "first.json")
        second = _read(Path(folder) / "second.json")
    handed_over = [(emitted[0], at) for _, _, at, emitted in first["committed"]]
    committed = {event_id: at for _, event_id, at, _ in second["committed"]}
    counted = handed_over[int(count * WARM_UP) :]
    return Latency(
        called=percentiles([second["called"][event] - at for event, at in counted]),
        committed=percentiles([committed[event] - at for event, at in counted]),
        late=percentiles(late[int(count * WARM_UP) :]),
    )


async def _publish_on_schedule(chain: Chain, count: int, *, rate: int) -> list[float]:
    """Publish one event at each tick, and those of missed ticks together; return how late each was, in seconds."""
    began = time.monotonic()
    late: list[float] = []
    while len(late) < count:
        next_due = began + len(late) / rate
        if (wait := next_due - time.monotonic()) > 0:
            await asyncio.sleep(wait)
        now = time.monotonic()
        due = min(int((now - began) * rate) + 1, count) - len(late)
        late += [now - (next_due + number / rate) for number in range(due)]
        await chain.publish(due)
    return late


def percentiles(seconds: Sequence[float]) -> Percentiles:
    ordered = sorted(each * 1000 for each in seconds)
    last = len(ordered) - 1
    return Percentiles(p50=ordered[last // 2], p99=ordered[round(last * 0.99)], largest=ordered[last])


def _read(path: Path) -> Any:
    return json.loads(path.read_text())
