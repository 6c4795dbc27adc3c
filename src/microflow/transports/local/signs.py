"""Signs of life: how the members of a group see that one of them is dead, or has been silent for too long.

A member's sign is a file that its process keeps locked and touches now and then. A killed process loses the lock at
once; a stopped one keeps it, but its file grows old. Neither needs the log's write lock or a free byte on the disk.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import uuid
from collections.abc import Callable, Collection
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from microflow.ports import Clock
from microflow.transports.local.groups import Member

FORGET_AFTER = timedelta(hours=1)
TIDY_EVERY = timedelta(minutes=10)


def signs_of(log: Path) -> Path:
    """The folder with the signs of all members of a log's groups."""
    return log.with_name(f"{log.name}-members")


class Sign:
    """This process's sign of life for one member."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._descriptor = -1
        self.name = ""

    def give(self, now: datetime) -> None:
        """Make a new one. Raises OSError."""
        self.withdraw()
        self.name = uuid.uuid4().hex
        self.renew(now)

    def renew(self, now: datetime) -> None:
        """Say that the member lives. Raises OSError."""
        try:
            os.utime(self._folder / self.name, (now.timestamp(), now.timestamp()))
        except FileNotFoundError:  # it is new, or somebody has tidied up
            self._lock()
            os.utime(self._folder / self.name, (now.timestamp(), now.timestamp()))

    def withdraw(self) -> None:
        if self._descriptor >= 0:
            with contextlib.suppress(OSError):
                (self._folder / self.name).unlink()
            self.let_go()

    def let_go(self) -> None:
        """Leave the file behind, unlocked as if this process had died: the others see it at once."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _lock(self) -> None:
        self.let_go()
        self._folder.mkdir(exist_ok=True)
        self._descriptor = os.open(self._folder / self.name, os.O_RDWR | os.O_CREAT, 0o600)
        fcntl.flock(self._descriptor, fcntl.LOCK_EX)


@dataclass(slots=True)
class Seen:
    """What a member's sign looked like last, and since when."""

    touched: float
    since: timedelta


class Attendance:
    """Watches the other members of one group, on behalf of one of them.

    Silence is counted by the watcher's monotonic clock, and only while the watcher itself was awake: no step of the
    time of day expels anybody, and of two that were stopped together neither expels the other. Only of a member never
    seen before it is the age of its sign that counts, so that nobody waits for those that died long ago.
    """

    def __init__(self, folder: Path, *, clock: Clock, rebalance_timeout: timedelta, awake_within: timedelta) -> None:
        self._folder = folder
        self._clock = clock
        self._rebalance_timeout = rebalance_timeout
        self._awake_within = awake_within
        self._seen: dict[int, Seen] = {}
        self._unready: dict[int, timedelta] = {}
        self._looked_at = clock.monotonic()
        self._tidied_at: timedelta | None = None

    def absent(self, members: Collection[Member]) -> list[int]:
        """Those that are dead, silent for longer than their session, or slow to give up their partitions."""
        now = self._clock.monotonic()
        if now - self._looked_at > self._awake_within:
            self._begin_anew(now)
        self._looked_at = now
        mortal = [member for member in members if member.session is not None and member.sign]
        self._forget_others({member.id for member in mortal})
        return [member.id for member in mortal if self._is_silent(member, now) or self._is_slow(member, now)]

    def tidy(self, known: Callable[[], Collection[str]]) -> None:
        """Remove, now and then, what processes that died before they joined have left behind."""
        now = self._clock.monotonic()
        if self._tidied_at is not None and now - self._tidied_at < TIDY_EVERY:
            return
        self._tidied_at = now
        names = known()
        with contextlib.suppress(OSError):
            for path in self._folder.iterdir():
                age = self._clock.now().timestamp() - path.stat().st_mtime
                if path.name not in names and age > FORGET_AFTER.total_seconds() and is_abandoned(path):
                    path.unlink()

    def _is_silent(self, member: Member, now: timedelta) -> bool:
        path = self._folder / str(member.sign)
        try:
            if is_abandoned(path):
                return True
            touched = path.stat().st_mtime
        except OSError:
            touched = 0.0
        seen = self._seen.get(member.id)
        if seen is None:
            age = self._clock.now().timestamp() - touched if touched else 0
            seen = self._seen[member.id] = Seen(touched, now - timedelta(seconds=max(age, 0)))
        elif seen.touched != touched:
            seen.touched, seen.since = touched, now
        return member.session is not None and now - seen.since > member.session

    def _is_slow(self, member: Member, now: timedelta) -> bool:
        if member.ready:
            self._unready.pop(member.id, None)
            return False
        return now - self._unready.setdefault(member.id, now) > self._rebalance_timeout

    def _begin_anew(self, now: timedelta) -> None:
        for seen in self._seen.values():
            seen.since = now
        self._unready.clear()

    def _forget_others(self, present: Collection[int]) -> None:
        self._seen = {member: seen for member, seen in self._seen.items() if member in present}
        self._unready = {member: since for member, since in self._unready.items() if member in present}


def is_abandoned(path: Path) -> bool:
    """Whether nobody holds the lock of a sign: its process is gone. Raises OSError."""
    descriptor = os.open(path, os.O_RDWR)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)
    return True
