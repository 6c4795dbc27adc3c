"""Health: `/live` and `/ready` over HTTP, for whoever starts, stops and watches processes.

It answers from a thread of its own, so that it can still say that the event loop is blocked.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from microflow.errors import SettingsError
from microflow.socket_addresses import SocketAddress
from microflow.version import __version__

PATIENCE = 0.8
"""Seconds until an answer is given without knowing: a probe of Kubernetes waits for one second."""
LONGEST_REQUEST = 5.0
MOST_REQUESTS = 32

Answer = tuple[HTTPStatus, Mapping[str, Any]]
Ask = Callable[[str], Answer | None]
"""What is answered to the path of a request; None: there is no such path."""


@contextlib.contextmanager
def answering(address: SocketAddress, ask: Ask) -> Iterator[int]:
    """Answer requests while the block runs; gives the port. Raises SettingsError if the address cannot be had."""
    try:
        server = _Server(address, ask)
    except OSError as cause:
        raise SettingsError(
            f"--health {address} cannot be had: {cause.strerror or cause}.",
            why="Somebody else listens there." if "in use" in str(cause) else None,
            fix=f"Another port:  --health :{address.port + 1}",
        ) from cause
    thread = threading.Thread(target=server.serve_forever, args=(0.1,), name="microflow-health", daemon=True)
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
        thread.join(PATIENCE)


class Vitals:
    """What a process says of itself: whether its event loop turns, and what its services are ready for.

    `readiness` is asked on the loop; each service's is a mapping with `ready`, `missing` and `limited`.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        readiness: Callable[[], Coroutine[Any, Any, Mapping[str, Mapping[str, Any]]]],
    ) -> None:
        self._loop = loop
        self._readiness = readiness
        self._turned = time.monotonic()

    def __call__(self, path: str) -> Answer | None:
        match path:
            case "/live":
                return self._live()
            case "/ready":
                return self._ready()
            case _:
                return None

    def _live(self) -> Answer:
        if self._on_loop(_nothing()) is not None:
            self._turned = time.monotonic()
            return HTTPStatus.OK, {"live": True, "version": __version__}
        blocked = time.monotonic() - self._turned
        why = f"the event loop has not turned for {blocked:.1f} s: a handler blocks it"
        return HTTPStatus.SERVICE_UNAVAILABLE, {"live": False, "missing": [why]}

    def _ready(self) -> Answer:
        services = self._on_loop(self._readiness())
        if services is None:
            why = "the event loop or the database does not answer"
            return HTTPStatus.SERVICE_UNAVAILABLE, {"ready": False, "missing": [why]}
        ready = all(each["ready"] for each in services.values())
        status = HTTPStatus.OK if ready else HTTPStatus.SERVICE_UNAVAILABLE
        return status, {"ready": ready, "services": services}

    def _on_loop(self, question: Coroutine[Any, Any, Any]) -> Any:
        """What is answered on the loop, in time; None if it is not."""
        try:
            future = asyncio.run_coroutine_threadsafe(question, self._loop)
        except RuntimeError:  # the loop is closed: the process ends
            question.close()
            return None
        try:
            return future.result(PATIENCE)
        except (TimeoutError, concurrent.futures.CancelledError):
            future.cancel()
            return None


async def _nothing() -> bool:
    return True


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_port = False

    def __init__(self, address: SocketAddress, ask: Ask) -> None:
        self.ask = ask
        self._free = threading.BoundedSemaphore(MOST_REQUESTS)
        self.address_family = address.family
        super().__init__((address.host, address.port), _Request, bind_and_activate=False)
        if address.descriptor is not None:
            self.socket.close()
            self.socket = socket.socket(fileno=address.descriptor)
            self.server_address = self.socket.getsockname()
            self.server_port = self.server_address[1]
            return
        try:
            if address.both_families:
                self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            self.server_bind()
            self.server_activate()
        except BaseException:
            self.server_close()
            raise

    def server_bind(self) -> None:
        # As the base class but for the name of this host, which it looks up, and which can take seconds.
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = str(self.server_address[0]), self.server_address[1]

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._free.acquire(blocking=False):
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Who asks and goes before the answer is no error of ours."""


class _Request(BaseHTTPRequestHandler):
    server: _Server
    timeout = LONGEST_REQUEST
    server_version = f"microflow/{__version__}"
    sys_version = ""

    def do_GET(self) -> None:
        answer = self.server.ask(self.path.partition("?")[0])
        status, body = answer or (HTTPStatus.NOT_FOUND, {"paths": ["/live", "/ready"]})
        content = f"{json.dumps(body, ensure_ascii=False)}\n".encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    do_HEAD = do_GET

    def log_message(self, format: str, *arguments: Any) -> None:  # noqa: A002 - the base class calls it that
        """A probe every few seconds is not worth a line."""
