"""One server of a kind for all processes of a test session; it ends with the last of them, however they end.

The first process that asks starts a keeper (`python -m servers.session FOLDER`), which starts what is asked for. Each
asks over a connection of its own to the keeper's socket and keeps it open; when none is open any more, the keeper ends
its servers and itself. Another session has another keeper: none meets what an earlier one left behind.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
import threading
import time
import traceback
from contextlib import ExitStack
from pathlib import Path

from servers.finding import KINDS, Found, Missing, a_server
from servers.folders import is_alive, is_locked, locked, remove, temporary
from servers.processes import ServerFailed

ROOT = Path(__file__).parents[1]
STARTS_WITHIN = 30.0
LOOK_AT_CLIENTS = 0.5


class Session:
    """The servers of one test session, as one of its processes sees them; they stay until all have closed theirs."""

    def __init__(self, name: str) -> None:
        self._folder = temporary() / f"session-{name}"
        self._connections: list[socket.socket] = []

    def server(self, kind: str) -> Found:
        """The session's server of that kind, started if nobody has asked for it before.

        Raises Missing, or ServerFailed if there is one and it does not work.
        """
        with locked(temporary() / "sessions.lock"):
            connection = self._connect() or self._start_keeper()
        self._connections.append(connection)
        with connection.makefile("rw") as keeper:
            keeper.write(json.dumps({"kind": kind, "pid": os.getpid()}) + "\n")
            keeper.flush()
            answer = json.loads(keeper.readline() or "{}")
        if "address" in answer:
            return Found(answer["address"], answer["origin"])
        if "missing" in answer:
            raise Missing(answer["missing"])
        raise ServerFailed(answer.get("failed", f"the keeper of the servers has ended; see {self._folder}/keeper.log"))

    def close(self) -> None:
        """Say that this process needs them no longer."""
        for connection in self._connections:
            connection.close()
        self._connections.clear()

    def _connect(self) -> socket.socket | None:
        connection = socket.socket(socket.AF_UNIX)
        try:
            connection.connect(str(self._folder / "socket"))
        except OSError:
            connection.close()
            return None
        return connection

    def _start_keeper(self) -> socket.socket:
        _remove_left_behind()
        remove(self._folder)
        self._folder.mkdir(mode=0o711)
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        log = str(self._folder / "keeper.log")
        # Not `subprocess`: whoever starts the keeper may be gone long before it.
        os.posix_spawn(
            sys.executable,
            [sys.executable, "-m", "servers.session", str(self._folder)],
            environment,
            setsid=True,
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                (os.POSIX_SPAWN_OPEN, 1, log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600),
                (os.POSIX_SPAWN_DUP2, 1, 2),
            ],
        )
        deadline = time.monotonic() + STARTS_WITHIN
        while (connection := self._connect()) is None:
            if time.monotonic() > deadline:
                raise ServerFailed(f"the keeper of the servers does not start; see {log}")
            time.sleep(0.01)
        return connection


class Keeper:
    """Starts servers for whoever connects, each once, and says when nobody is connected any more."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self._stack = stack
        self._answers: dict[str, dict[str, str]] = {}
        self._starting = threading.Lock()
        self._clients: dict[socket.socket, int] = {}
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.bind(str(folder / "socket"))
        self._socket.listen(64)
        self._socket.settimeout(LOOK_AT_CLIENTS)

    def serve(self) -> None:
        """Return when the last client has gone, and nobody can connect any more."""
        self._welcome()
        while True:
            if not self._welcome():
                self._forget_the_dead()
                if not self._clients and self._close_the_door():
                    return

    def _welcome(self) -> bool:
        """Wait a moment for a client; False if none came."""
        try:
            client, _ = self._socket.accept()
        except (TimeoutError, BlockingIOError):
            return False
        self._clients[client] = 0
        threading.Thread(target=self._talk_to, args=(client,), daemon=True).start()
        return True

    def _close_the_door(self) -> bool:
        """False if somebody stood before it. Clients knock under the same lock."""
        with locked(temporary() / "sessions.lock"):
            self._socket.settimeout(0)
            if self._welcome():
                self._socket.settimeout(LOOK_AT_CLIENTS)
                return False
            self._socket.close()
            return True

    def _talk_to(self, client: socket.socket) -> None:
        with contextlib.suppress(OSError, ValueError), client.makefile("rw") as stream:
            for line in stream:
                request = json.loads(line)
                self._clients[client] = request["pid"]
                stream.write(json.dumps(self._answer(request["kind"])) + "\n")
                stream.flush()
        self._clients.pop(client, None)
        client.close()

    def _answer(self, kind: str) -> dict[str, str]:
        with self._starting:
            if kind not in self._answers:
                self._answers[kind] = self._start(kind)
            return self._answers[kind]

    def _start(self, kind: str) -> dict[str, str]:
        try:
            found = self._stack.enter_context(a_server(KINDS[kind]))
        except Missing as missing:
            return {"missing": str(missing)}
        except Exception as error:
            traceback.print_exc()
            return {"failed": f"{KINDS[kind].title} cannot be started: {error}"}
        return {"address": found.address, "origin": found.origin}

    def _forget_the_dead(self) -> None:
        """A killed client's connection may live on in a process that it forked."""
        for client, pid in list(self._clients.items()):
            if pid and not is_alive(pid):
                self._clients.pop(client, None)


def _remove_left_behind() -> None:
    """Delete the folders of sessions whose keeper was killed; its servers have ended with it."""
    for folder in temporary().glob("session-*"):
        if not is_locked(folder / "alive"):
            remove(folder)


def main() -> None:
    folder = Path(sys.argv[1])
    with locked(folder / "alive"), ExitStack() as stack:
        Keeper(folder, stack).serve()
    remove(folder)


if __name__ == "__main__":
    main()
