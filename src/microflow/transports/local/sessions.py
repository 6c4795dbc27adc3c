"""Signs of life: how the members of a group know that one of them is dead, or has been silent for too long.

A member's sign is a file that its process keeps locked and touches now and then. A killed process loses the lock at
once; a stopped one keeps it, but its file gets old. Neither needs the log's write lock or a free byte on the disk.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import uuid
from datetime import datetime
from pathlib import Path


def signs_of(log: Path) -> Path:
    """The folder with the signs of all members of a log's groups."""
    return log.with_name(f"{log.name}-members")


class Sign:
    """This process's sign for one member."""

    def __init__(self, log: Path) -> None:
        self._folder = signs_of(log)
        self.name = uuid.uuid4().hex
        self._descriptor = -1

    def give(self) -> None:
        """Make the file and lock it."""
        self.withdraw()
        self._folder.mkdir(exist_ok=True)
        self._descriptor = os.open(self._folder / self.name, os.O_RDWR | os.O_CREAT, 0o600)
        fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def renew(self, now: datetime) -> None:
        """Say that the member lives. A file that somebody has removed is made again."""
        nanoseconds = int(now.timestamp() * 1_000_000) * 1000
        try:
            os.utime(self._folder / self.name, ns=(nanoseconds, nanoseconds))
        except FileNotFoundError:
            self.give()

    def withdraw(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
            with contextlib.suppress(OSError):
                (self._folder / self.name).unlink()
