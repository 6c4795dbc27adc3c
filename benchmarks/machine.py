"""The machine that is measured on, and what its processes have spent."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Iterable
from pathlib import Path

TICKS = os.sysconf("SC_CLK_TCK")


def describe_machine() -> None:
    model = next(
        (line.partition(":")[2].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")), "unknown"
    )
    sys.stdout.write(
        f"{os.cpu_count()} processors ({model}), load {os.getloadavg()[0]:.1f}, Python {platform.python_version()}, "
        f"{platform.system()} {platform.release()}\n"
    )


def processes_of(name: str) -> list[int]:
    """The processes that run a program."""
    folders = [folder for folder in Path("/proc").iterdir() if folder.name.isdecimal()]
    return [int(folder.name) for folder in folders if "".join(_lines(folder / "comm")).strip() == name]


def cpu_of(processes: Iterable[int]) -> float:
    """CPU seconds, user and system, of processes that run now and of their children that have ended."""
    ticks = 0
    for process in processes:
        fields = "".join(_lines(f"/proc/{process}/stat")).rpartition(")")[2].split()
        ticks += sum(int(each) for each in fields[11:15])
    return ticks / TICKS


def _lines(path: str | Path) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:  # it has ended meanwhile
        return []
