"""Chains in a second: two handlers in two services with two databases, every guarantee on."""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from flow import running_chain


@dataclass(frozen=True, slots=True)
class Throughput:
    """Chains (or workflows) in a second, and the CPU seconds of all their processes for each of them."""

    rate: float
    cpu: float


async def measure_chain(scratch: Path, *, chains: int, together: bool = False) -> Throughput:
    """From the publishing of the first event to the commit of the last one's second handler."""
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        async with running_chain(Path(folder), together=together) as chain:
            began = time.monotonic()
            await chain.publish(chains)
            ended = await chain.until_handled(2 * chains)
            cpu = await chain.stop()
            chain.check()
    return Throughput(rate=chains / (ended - began), cpu=cpu / chains)
