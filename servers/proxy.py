"""A cable that can be cut: a TCP proxy before a server, which loses, holds back or forgets what it carries.

It runs in a thread of its own, so that a test which drives processes can use it as well as one that runs a loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Literal, TypeVar

from servers.ports import LOOPBACK

CHUNK = 65536
Side = Literal["client", "server"]
T = TypeVar("T")


@dataclass(eq=False)
class Connection:
    """Two streams, and which of their ends are still held."""

    client: asyncio.StreamWriter
    server: asyncio.StreamWriter
    forgotten: set[Side] = field(default_factory=set)

    def writer(self, side: Side) -> asyncio.StreamWriter:
        return self.client if side == "client" else self.server

    def abort(self) -> None:
        self.client.transport.abort()
        self.server.transport.abort()


@dataclass(eq=False)
class Loss:
    """What is to be lost: the answer that holds `pattern`, after `spared` others that do."""

    pattern: bytes
    spared: int


class Proxy:
    """Carries connections to a port of this machine, until it is told to do otherwise. Use it in a `with`."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._loop = asyncio.new_event_loop()
        self._connections: set[Connection] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._loss: Loss | None = None
        self._lost = threading.Event()
        self._refusing = False
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._thread = threading.Thread(target=self._loop.run_forever, name=f"proxy of {target}", daemon=True)
        self._thread.start()
        self._server = asyncio.run_coroutine_threadsafe(
            asyncio.start_server(self._carry, LOOPBACK, 0), self._loop
        ).result()
        self.port: int = self._server.sockets[0].getsockname()[1]

    def __enter__(self) -> Proxy:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.close()

    # ── what can go wrong ─────────────────────────────────────────────────────────────────────────────────────────

    def break_connections(self) -> None:
        """Break all connections, once; new ones are carried."""
        self._do(self._break)

    def cut(self) -> None:
        """Break all connections and let nobody in until `heal`."""

        def cut() -> None:
            self._refusing = True
            self._break()

        self._do(cut)

    def silence(self) -> None:
        """Carry nothing in either direction until `heal`; then what was held back arrives, as after a network's split.

        Whoever connects is let in, and hears nothing.
        """
        self._do(self._flowing.clear)

    def forget(self, side: Side) -> None:
        """Leave all connections half open: `side` believes that it is connected, the other one is not any more."""

        def forget() -> None:
            gone: Side = "server" if side == "client" else "client"
            for connection in self._connections:
                connection.forgotten.add(gone)
                connection.writer(gone).transport.abort()

        self._do(forget)

    def lose_answer(self, pattern: bytes, *, spared: int = 0) -> None:
        """Lose one answer of the server, and break its connection: it has been done, and nobody was told.

        It is the one that holds `pattern`, after so many that do are spared: b"COMMIT\\0" is PostgreSQL's word for a
        transaction that is committed. `wait_for_loss` tells when.
        """

        def lose() -> None:
            self._lost.clear()
            self._loss = Loss(pattern, spared)

        self._do(lose)

    def wait_for_loss(self, *, seconds: float) -> bool:
        """Whether the answer was lost by then."""
        return self._lost.wait(seconds)

    def heal(self) -> None:
        """Carry everything again. What was broken stays so."""

        def heal() -> None:
            self._refusing = False
            self._loss = None
            self._flowing.set()

        self._do(heal)

    @property
    def connections(self) -> int:
        """How many are open now."""
        return self._do(lambda: len(self._connections))

    def close(self) -> None:
        """Break everything and stop listening."""
        if self._loop.is_closed():
            return
        self._do(self._server.close)
        self._do(self._break)
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    # ── in the thread ─────────────────────────────────────────────────────────────────────────────────────────────

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._refusing:
            writer.transport.abort()
            return
        try:
            server_reader, server_writer = await asyncio.open_connection(LOOPBACK, self._target)
        except OSError:
            writer.transport.abort()
            return
        connection = Connection(writer, server_writer)
        self._connections.add(connection)
        requests = self._loop.create_task(self._pump(connection, reader, "server"))
        answers = self._loop.create_task(self._pump(connection, server_reader, "client"))
        self._tasks |= {requests, answers}
        await asyncio.gather(requests, answers, return_exceptions=True)
        self._tasks -= {requests, answers}
        self._connections.discard(connection)
        connection.abort()

    async def _pump(self, connection: Connection, reader: asyncio.StreamReader, to: Side) -> None:
        """Carry what comes in to one side. An end that is forgotten takes everything and passes nothing on."""
        origin: Side = "server" if to == "client" else "client"
        writer = connection.writer(to)
        with contextlib.suppress(ConnectionError, OSError):
            while chunk := await reader.read(CHUNK):
                await self._flowing.wait()
                if to == "client" and self._is_lost(chunk):
                    connection.abort()
                    self._lost.set()
                    return
                if to not in connection.forgotten:
                    writer.write(chunk)
                    await writer.drain()
        if origin not in connection.forgotten:
            writer.transport.abort()

    def _is_lost(self, chunk: bytes) -> bool:
        if self._loss is None or self._loss.pattern not in chunk:
            return False
        self._loss.spared -= chunk.count(self._loss.pattern)
        if self._loss.spared >= 0:
            return False
        self._loss = None
        return True

    def _break(self) -> None:
        for connection in self._connections:
            connection.abort()

    async def _end(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.sleep(0)

    def _do(self, work: Callable[[], T]) -> T:
        async def run() -> T:
            return work()

        return asyncio.run_coroutine_threadsafe(run(), self._loop).result()
