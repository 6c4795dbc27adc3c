"""A SQLite file: its library, where it lies, who else has it open, and what waits in it."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path

from microflow.cli.paths import shortened
from microflow.cli.probes.findings import Finding, problem, warning

SAFE_WITH_OTHERS = (3, 51, 3)
NETWORK = ("nfs", "cifs", "smb", "sshfs", "9p", "afs", "gluster", "ceph", "lustre", "davfs", "virtiofs")
"""Parts of the names of file systems on which locks and shared memory are another machine's business."""


def look_at_sqlite(path: Path, *, workers: int) -> Sequence[Finding]:
    """What speaks against the library and the place of a file, which need not exist yet."""
    name = shortened(str(path))
    findings: list[Finding] = []
    kind = file_system_of(path, mounts=_mounts())
    if kind is not None and any(each in kind for each in NETWORK):
        findings.append(
            problem(
                f"{name} lies on a network file system ({kind}): two machines can write it at once and destroy it",
                "a folder of this machine, or PostgreSQL:  MICROFLOW_DATABASE=postgresql://…",
            )
        )
    others = sorted(set(_processes_with(path)) - {os.getpid()})
    if sqlite3.sqlite_version_info < SAFE_WITH_OTHERS and (workers > 1 or len(others) > 1):
        who = f"{len(others)} processes have it open" if len(others) > 1 else f"{workers} workers will share it"
        findings.append(
            warning(
                f"SQLite {sqlite3.sqlite_version} can damage {name} if another program makes a checkpoint while a "
                f"service writes ({who}; ours take turns)",
                "a Python with SQLite 3.51.3 or newer, or one process",
            )
        )
    if path.exists() and not os.access(path, os.W_OK):
        findings.append(problem(f"{name} cannot be written by this user", f"chmod u+w {name}"))
    return findings


def file_system_of(path: Path, *, mounts: str) -> str | None:
    """The kind of file system that a path is on, by the lines of /proc/mounts; None where there are none."""
    best: tuple[int, str] | None = None
    place = path.resolve()
    for line in mounts.splitlines():
        _, mounted, kind, *_ = line.split(" ")
        point = Path(mounted.replace("\\040", " "))
        if place.is_relative_to(point) and (best is None or len(point.parts) >= best[0]):
            best = len(point.parts), kind
    return best[1] if best else None


def _mounts() -> str:
    try:
        return Path("/proc/mounts").read_text(encoding="utf-8")
    except OSError:
        return ""


def _processes_with(path: Path) -> Iterator[int]:
    """The processes of this user that have a file open, where the system tells."""
    wanted = str(path.resolve())
    for process in Path("/proc").glob("[0-9]*"):
        try:
            for descriptor in (process / "fd").iterdir():
                if os.readlink(descriptor) == wanted:
                    yield int(process.name)
                    break
        except OSError:
            continue
