"""DBOS's side of the comparison: its two-step workflow on SQLite, in whichever of its ways is the fastest here."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sqlite3
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from flow import PATIENCE, BenchmarkError
from throughput import Throughput

PROCESS = Path(__file__).with_name("dbos_process.py")
WAYS = ("one after another", "in threads", "async", "through a queue")


@dataclass(frozen=True, slots=True)
class Setup:
    """How DBOS is used. `tuned`: its file was switched to a write-ahead log by hand, which it does not do itself."""

    way: str
    tuned: bool

    def __str__(self) -> str:
        return f"{self.way}, write-ahead log by hand" if self.tuned else self.way


async def measure_workflows(scratch: Path, setup: Setup, *, workflows: int) -> Throughput:
    """From the start of the first workflow to the result of the last."""
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        file = Path(folder) / "dbos.sqlite"
        if setup.tuned:
            with contextlib.closing(sqlite3.connect(file)) as connection:
                connection.execute("pragma journal_mode = wal")
        process = await asyncio.create_subprocess_exec(
            sys.executable, str(PROCESS), str(file), setup.way, str(workflows), stdout=asyncio.subprocess.PIPE
        )
        try:
            output, _ = await asyncio.wait_for(process.communicate(), PATIENCE.total_seconds())
        finally:
            if process.returncode is None:
                process.kill()
        if process.returncode != 0:
            raise BenchmarkError(f"DBOS ended with {process.returncode} ({setup})")
        with contextlib.closing(sqlite3.connect(file)) as connection:
            (done,) = connection.execute("select count(*) from workflow_status where status = 'SUCCESS'").fetchone()
        if done < workflows:
            raise BenchmarkError(f"DBOS has finished {done} of {workflows} workflows ({setup})")
    figures = json.loads(output.splitlines()[-1])
    return Throughput(rate=workflows / figures["seconds"], cpu=figures["cpu"] / workflows)


async def fastest(scratch: Path, *, tuned: bool, workflows: int) -> tuple[Setup, dict[str, Throughput]]:
    """The fastest of DBOS's ways on this machine now, and what each reached."""
    found = {way: await measure_workflows(scratch, Setup(way, tuned), workflows=workflows) for way in WAYS}
    return Setup(max(found, key=lambda way: found[way].rate), tuned), found
