"""Which process holds the write lock of a SQLite file."""

from __future__ import annotations

import fcntl
import os
import struct
import sys
from pathlib import Path

WRITE_LOCK_BYTE = 120
"""In WAL mode, of the -shm file (https://www.sqlite.org/walformat.html, "WAL Locks")."""

_descriptors: dict[tuple[str, int], int] = {}


def write_lock_holder(path: Path) -> int | None:
    """The pid of the other process that holds the write lock, None if none does or it cannot be told."""
    try:
        descriptor = _shared_memory(f"{path}-shm")
        return _asked_on_macos(descriptor) if sys.platform == "darwin" else _asked_on_linux(descriptor)
    except OSError:
        return None


def _asked_on_linux(descriptor: int) -> int | None:
    lock = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, WRITE_LOCK_BYTE, 1, 0)
    kind, _, _, _, pid = struct.unpack("hhqqi4x", fcntl.fcntl(descriptor, fcntl.F_GETLK, lock))
    return int(pid) if kind != fcntl.F_UNLCK else None


def _asked_on_macos(descriptor: int) -> int | None:
    lock = struct.pack("qqihh", WRITE_LOCK_BYTE, 1, 0, fcntl.F_WRLCK, os.SEEK_SET)
    _, _, pid, kind, _ = struct.unpack("qqihh", fcntl.fcntl(descriptor, fcntl.F_GETLK, lock))
    return int(pid) if kind != fcntl.F_UNLCK else None


def _shared_memory(name: str) -> int:
    # Never closed: closing any descriptor of a file drops all POSIX locks that this process, so its SQLite, has on it.
    key = (name, os.stat(name).st_ino)
    if key not in _descriptors:
        _descriptors[key] = os.open(name, os.O_RDWR | os.O_CLOEXEC)
    return _descriptors[key]
