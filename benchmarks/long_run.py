"""A long run on real servers: whether the rate stays as the inbox grows, and the memory beside a large backlog."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from itertools import pairwise

from hops import running_peer, said_by
from machine import resident
from scenery import Scenery

SLOWEST = 1_000
"""Events a second: who is slower has failed."""
LOOK_EVERY = timedelta(milliseconds=100)
PARTS = 10
WARM_UP = 0.3


@dataclass(frozen=True, slots=True)
class Sample:
    """So many events had been published after so many seconds, and the service's memory was so large, in bytes."""

    seconds: float
    events: int
    memory: int


@dataclass(frozen=True, slots=True)
class LongRun:
    """Events a second of each tenth, the memory in bytes after it, and the slope of that in bytes per event, without
    the warm-up."""

    rates: Sequence[float]
    memory: Sequence[int]
    slope: float


async def measure_long_run(scenery: Scenery, variant: str, *, events: int) -> LongRun:
    """All events are in the topic when the service begins: the backlog is as long as the run."""
    samples: list[Sample] = []
    patience = timedelta(seconds=60 + events / SLOWEST)
    async with running_peer(scenery, "microflow_service", variant, events=events, patience=patience) as (peer, target):
        began = (await said_by(peer))["began"]
        ends = asyncio.create_task(said_by(peer))
        while not samples or samples[-1].events < events:
            await asyncio.wait([ends], timeout=LOOK_EVERY.total_seconds())
            if ends.done():
                ends.result()
            published = await scenery.published(target)
            samples.append(Sample(time.monotonic() - began, published, resident(peer.pid)))
        ends.cancel()
    counted = [each for each in samples if each.events >= events * WARM_UP]
    slope = statistics.linear_regression([each.events for each in counted], [each.memory for each in counted]).slope
    tenths = [next(each for each in samples if each.events >= events * part / PARTS) for part in range(1, PARTS + 1)]
    rates = [
        (after.events - before.events) / (after.seconds - before.seconds)
        for before, after in pairwise([Sample(0.0, 0, 0), *tenths])
        if after is not before
    ]
    return LongRun(rates, [each.memory for each in tenths], slope)
