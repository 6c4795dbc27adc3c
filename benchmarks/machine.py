"""The machine that is measured on, and what its processes have spent."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Iterable
from pathlib import Path

TICKS = os.sysconf("SC_CLK_TCK")
LISTENS = "0A"


def describe_machine() -> None:
    model = next(
        (line.partition(":")[2].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")), "unknown"
    )
    sys.stdout.write(
        f"{os.cpu_count()} processors ({model}), load {os.getloadavg()[0]:.1f}, Python {platform.python_version()}, "
        f"{platform.system()} {platform.release()}\n"
    )


def server_at(address: str) -> list[int]:
    """The process that listens on this machine at host:port, and its children; none if it is another machine's."""
    port = f":{int(address.rpartition(':')[2]):04X}"
    rows = [line.split() for name in ("tcp", "tcp6") for line in _lines(f"/proc/net/{name}")[1:]]
    sockets = {f"socket:[{row[9]}]" for row in rows if row[1].endswith(port) and row[3] == LISTENS}
    everybody = [int(folder.name) for folder in Path("/proc").iterdir() if folder.name.isdecimal()]
    listeners = [each for each in everybody if sockets & _open_files(each)]
    return [*listeners, *(each for each in everybody if _parent(each) in listeners)]


def cpu_of(processes: Iterable[int]) -> float:
    """CPU seconds, user and system, of processes that run now and of their children that have ended."""
    ticks = 0
    for process in processes:
        fields = "".join(_lines(f"/proc/{process}/stat")).rpartition(")")[2].split()
        ticks += sum(int(each) for each in fields[11:15])
    return ticks / TICKS


def resident(process: int) -> int:
    """A process's resident memory in bytes."""
    for line in _lines(f"/proc/{process}/status"):
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    return 0


def _open_files(process: int) -> set[str]:
    try:
        return {os.readlink(each) for each in Path(f"/proc/{process}/fd").iterdir()}
    except OSError:  # it has ended meanwhile, or a file was closed
        return set()


def _parent(process: int) -> int:
    fields = "".join(_lines(f"/proc/{process}/stat")).rpartition(")")[2].split()
    return int(fields[1]) if fields else 0


def _lines(path: str | Path) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:  # it has ended meanwhile
        return []
