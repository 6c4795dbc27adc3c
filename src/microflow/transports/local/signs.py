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
    """When a member's sign was touched last, None if it is missing, and since when it has looked like that."""

    touched: float | None
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
        slept = now - self._looked_at > self._awake_within
        self._looked_at = now
        present = {member.id for member in members}
        self._seen = {id_: seen for id_, seen in self._seen.items() if id_ in present and not slept}
        self._unready = {id_: since for id_, since in self._unready.items() if id_ in present and not slept}
        return [
            member.id
            for member in members
            if self._is_silent(member, now, believe_age=not slept) or self._is_slow(member, now)
        ]

    def tidy(self, known: Callable[[], Collection[str]]) -> None:
        """Remove, now and then, what processes that died before they joined have left behind."""
        now = self._clock.monotonic()
        if self._tidied_at is not None and now - self._tidied_at < TIDY_EVERY:
            return
        self._tidied_at = now
        names = known()
        with contextlib.suppress(OSError):
            for path in self._folder.iterdir():
                if path.name not in names and self._age(path.stat().st_mtime) > FORGET_AFTER and is_abandoned(path):
                    path.unlink()

    def _is_silent(self, member: Member, now: timedelta, *, believe_age: bool) -> bool:
        if member.session is None or member.sign is None:
            return False
        path = self._folder / member.sign
        try:
            if is_abandoned(path):
                return True
            touched: float | None = path.stat().st_mtime
        except OSError:
            touched = None
        seen = self._seen.get(member.id)
        if seen is None:
            age = self._age(touched) if touched is not None and believe_age else timedelta(0)
            seen = self._seen[member.id] = Seen(touched, now - age)
        elif seen.touched != touched:
            seen.touched, seen.since = touched, now
        return now - seen.since > member.session

    def _is_slow(self, member: Member, now: timedelta) -> bool:
        if member.ready or member.session is None:
            self._unready.pop(member.id, None)
            return False
        return now - self._unready.setdefault(member.id, now) > self._rebalance_timeout

    def _age(self, touched: float) -> timedelta:
        return max(timedelta(seconds=self._clock.now().timestamp() - touched), timedelta(0))


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
