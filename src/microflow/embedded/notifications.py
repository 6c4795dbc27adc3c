"""How a process learns that another one has committed to a file they share: a datagram, and a look at the file.

SQLite tells nobody of a commit. Every process that watches a file binds a socket in a folder named after that file,
and whoever commits sends one byte to each socket there: that takes about 0.1 ms and costs nothing while nothing
happens. Commits by programs that know nothing of this are found by looking at `pragma data_version` now and then.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import socket
import tempfile
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

from microflow.ports import Clock

LOOK_EVERY = timedelta(milliseconds=20)


class Notifications:
    """Wakes watchers of one file, in this process and in others. `version` says whether others have committed."""

    def __init__(
        self, path: Path, *, clock: Clock, version: Callable[[], int], look_every: timedelta = LOOK_EVERY
    ) -> None:
        self._clock = clock
        self._version = version
        self._look_every = look_every
        self._watches: set[Watch] = set()
        self._folder = _socket_folder(path)
        self._socket: socket.socket | None = None
        self._looking: asyncio.Task[None] | None = None

    def watch(self) -> Watch:
        """Begin to watch: what is committed from now on ends the next `wait`."""
        watch = Watch(self._watches.discard)
        self._watches.add(watch)
        if self._looking is None:
            self._listen()
            self._looking = asyncio.get_running_loop().create_task(self._look())
        return watch

    def notify(self) -> None:
        """Tell everybody who watches that something was committed. Never blocks, never fails."""
        self._wake()
        for name in self._others():
            self._send(name)

    def close(self) -> None:
        if self._looking is not None:
            self._looking.cancel()
            self._looking = None
        if self._socket is not None:
            with contextlib.suppress(RuntimeError):  # the loop is gone already
                asyncio.get_running_loop().remove_reader(self._socket)
            self._socket.close()
            with contextlib.suppress(OSError):
                self._own_name().unlink()
            self._socket = None

    def _wake(self) -> None:
        for watch in self._watches:
            watch.wake()

    def _listen(self) -> None:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with contextlib.suppress(OSError):
            self._own_name().unlink()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setblocking(False)
        self._socket.bind(str(self._own_name()))
        asyncio.get_running_loop().add_reader(self._socket, self._heard)

    def _heard(self) -> None:
        assert self._socket is not None
        with contextlib.suppress(BlockingIOError):
            while self._socket.recv(64):
                pass
        self._wake()

    def _own_name(self) -> Path:
        return self._folder / f"{os.getpid()}-{id(self):x}"

    def _others(self) -> list[Path]:
        try:
            names = os.listdir(self._folder)
        except FileNotFoundError:
            return []
        own = self._own_name().name
        return [self._folder / name for name in names if name != own]

    def _send(self, name: Path) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.setblocking(False)
            try:
                sender.sendto(b"!", str(name))
            except BlockingIOError:
                pass  # its queue is full of notifications: it will wake
            except ConnectionRefusedError:
                name.unlink(missing_ok=True)  # its process was killed
            except OSError:
                pass

    async def _look(self) -> None:
        seen = self._version()
        while True:
            await self._clock.sleep(self._look_every)
            if (now := self._version()) != seen:
                seen = now
                self._wake()


class Watch:
    """One watcher's view: `wait` returns once for everything that was committed since it last returned."""

    def __init__(self, forget: Callable[[Watch], None]) -> None:
        self._event = asyncio.Event()
        self._forget = forget

    def wake(self) -> None:
        self._event.set()

    async def wait(self) -> None:
        await self._event.wait()
        self._event.clear()

    def close(self) -> None:
        self._forget(self)


def _socket_folder(path: Path) -> Path:
    # A socket's name may have 107 bytes on Linux and 103 on macOS, so it cannot stand beside a file with a long path.
    digest = hashlib.blake2b(os.fsencode(path.resolve()), digest_size=8).hexdigest()
    return Path(tempfile.gettempdir()) / f"microflow-{os.getuid()}" / digest
