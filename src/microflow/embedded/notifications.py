"""How a process learns that another one has committed to a file they share: a datagram, and a look at the file.

SQLite tells nobody of a commit. Every process that watches a file binds a socket in a folder named after that file,
and whoever commits sends one byte to each socket there: that takes about 0.1 ms and costs nothing while nothing
happens. Commits by programs that know nothing of this, or see another temporary folder, are found by looking at
`pragma data_version` now and then.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import os
import socket
import sqlite3
import stat
import tempfile
import uuid
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

from microflow.ports import Clock

logger = logging.getLogger("microflow.embedded")

LOOK_EVERY = timedelta(milliseconds=50)
ATTEMPTS_TO_BIND = 3


class Notifications:
    """Wakes watchers of one file, in this process and in others. `version` says whether others have committed.

    With `alone=True` the file belongs to this process, so nobody else is told or listened to.
    """

    def __init__(
        self,
        path: Path,
        *,
        clock: Clock,
        version: Callable[[], int],
        look_every: timedelta = LOOK_EVERY,
        alone: bool = False,
    ) -> None:
        self._clock = clock
        self._version = version
        self._look_every = look_every
        self._alone = alone
        self._watches: set[Watch] = set()
        self._folder = _socket_folder(path)
        self._name = f"{os.getpid()}-{uuid.uuid4().hex[:12]}"
        self._socket: socket.socket | None = None
        self._sender: socket.socket | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._looking: asyncio.Task[None] | None = None

    def watch(self) -> Watch:
        """Begin to watch: what is committed from now on ends the next `wait`."""
        watch = Watch(self._watches.discard)
        self._watches.add(watch)
        loop = asyncio.get_running_loop()
        if not self._alone and self._loop is not loop:
            self._stop_listening()
            self._loop = loop
            self._listen(loop)
            self._looking = loop.create_task(self._look())
        return watch

    def notify(self) -> None:
        """Tell everybody who watches that something was committed. Never blocks, never fails."""
        self._wake()
        if self._alone:
            return
        try:
            for name in os.listdir(self._folder):
                if name != self._name:
                    self._send(self._folder / name)
        except OSError as cause:  # nobody listens, or nothing can be sent: they will look
            logger.debug("cannot tell others of a commit: %s", cause)

    def close(self) -> None:
        """Stop listening; watches are woken by nobody any more."""
        self._stop_listening()
        if self._sender is not None:
            self._sender.close()
            self._sender = None

    def _wake(self) -> None:
        for watch in self._watches:
            watch.wake()

    def _send(self, name: Path) -> None:
        if self._sender is None:
            self._sender = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            self._sender.setblocking(False)
        try:
            self._sender.sendto(b"!", str(name))
        except BlockingIOError:
            pass  # its queue is full of notifications: it will wake
        except ConnectionRefusedError:
            name.unlink(missing_ok=True)  # its process was killed
        except OSError as cause:
            logger.debug("cannot tell %s of a commit: %s", name, cause)

    def _listen(self, loop: asyncio.AbstractEventLoop) -> None:
        try:
            self._socket = _bind(self._folder, self._name)
        except OSError as cause:
            logger.debug("commits of other processes are noticed late, only by looking: %s", cause)
            return
        loop.add_reader(self._socket, self._heard)

    def _heard(self) -> None:
        assert self._socket is not None
        with contextlib.suppress(OSError):  # as soon as there is nothing more to receive
            while self._socket.recv(64):
                pass
        self._wake()

    def _stop_listening(self) -> None:
        loop, self._loop = self._loop, None
        looking, self._looking = self._looking, None
        if loop is None:
            return
        if looking is not None and not loop.is_closed():
            looking.cancel()
        if self._socket is None:
            return
        if not loop.is_closed():
            loop.remove_reader(self._socket)
        self._socket.close()
        self._socket = None
        with contextlib.suppress(OSError):
            (self._folder / self._name).unlink()
            self._folder.rmdir()  # only if nobody else is in it

    async def _look(self) -> None:
        seen = None
        while True:
            try:
                version = self._version()
            except sqlite3.Error as cause:
                logger.debug("cannot look for commits: %s", cause)
            else:
                if version != seen:
                    seen = version
                    self._wake()
            await self._clock.sleep(self._look_every)


class Watch:
    """One watcher's view: `wait` returns once for everything that was committed since it last returned."""

    def __init__(self, forget: Callable[[Watch], None]) -> None:
        self._event = asyncio.Event()
        self._forget = forget

    def wake(self) -> None:
        """End the `wait` under way, or the next one."""
        self._event.set()

    async def wait(self) -> None:
        """Return at once if anything happened since the last return. Cancelling it loses nothing."""
        await self._event.wait()
        self._event.clear()

    def close(self) -> None:
        """Watch no more."""
        self._forget(self)


def _socket_folder(path: Path) -> Path:
    # A socket's name may have 107 bytes on Linux and 103 on macOS, so it cannot stand beside a file with a long path.
    digest = hashlib.blake2b(os.fsencode(path.resolve()), digest_size=8).hexdigest()
    return Path(tempfile.gettempdir()) / f"microflow-{os.getuid()}" / digest


def _bind(folder: Path, name: str) -> socket.socket:
    receiver = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    try:
        receiver.setblocking(False)
        for attempt in range(ATTEMPTS_TO_BIND):
            _make_private(folder.parent)
            folder.mkdir(mode=0o700, exist_ok=True)
            try:
                receiver.bind(str(folder / name))
                break
            except FileNotFoundError:  # the last one who listened has just removed the folder
                if attempt == ATTEMPTS_TO_BIND - 1:
                    raise
    except BaseException:
        receiver.close()
        raise
    return receiver


def _make_private(folder: Path) -> None:
    # The temporary folder is everybody's: somebody else may have made ours before us.
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise PermissionError(f"{folder} belongs to somebody else")
