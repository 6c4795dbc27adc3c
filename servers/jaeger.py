"""Jaeger on this machine: an all-in-one that keeps its traces in memory, and can be killed, paused and restarted."""

from __future__ import annotations

import http.client
import json
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

from servers.downloads import jaeger_program
from servers.folders import new_folder, remove
from servers.ports import LOOPBACK, answers, free_ports
from servers.processes import Process, ServerFailed, wait_until

STARTS_WITHIN = 60.0
PATIENCE = 5.0
USUAL_PORTS = (16686, 4318, 4317)


@dataclass(frozen=True, slots=True)
class Endpoints:
    """Where a Jaeger is reached, as URLs: `query` is its UI and its API, spans are sent to the other two."""

    query: str
    otlp_http: str
    otlp_grpc: str

    @classmethod
    def on_loopback(cls, query: int, otlp_http: int, otlp_grpc: int) -> Endpoints:
        """Of these ports."""
        return cls(*(f"http://{LOOPBACK}:{port}" for port in (query, otlp_http, otlp_grpc)))

    @classmethod
    def of(cls, address: str) -> Endpoints:
        """Of a line with commas: the query URL, then those for OTLP by HTTP and by gRPC, which may be left out where
        they are Jaeger's usual ones on the same host. Raises ServerFailed."""
        given = [each.strip().rstrip("/") for each in address.split(",")]
        urls = [urlsplit(each) for each in given]
        if len(urls) > len(USUAL_PORTS) or not all(url.scheme in ("http", "https") and url.hostname for url in urls):
            raise ServerFailed(
                f"A Jaeger is reached at http://localhost:16686, or, with other ports for OTLP by HTTP and by gRPC, at "
                f"http://localhost:16686,http://localhost:4318,http://localhost:4317; {address!r} is neither."
            )
        host = urls[0].netloc.removesuffix(f":{urls[0].port}")
        usual = [f"{urls[0].scheme}://{host}:{port}" for port in USUAL_PORTS]
        return cls(*given, *usual[len(given) :])

    @property
    def address(self) -> str:
        """The same in one line."""
        return f"{self.query},{self.otlp_http},{self.otlp_grpc}"


class Jaeger:
    """A server of its own on loopback, gone with this process. Use it in a `with`.

    It keeps its ports from start to start, and its traces until it stops. `options` are added to its command line.
    """

    def __init__(self, *, options: Sequence[str] = ()) -> None:
        self.folder = new_folder("jaeger")
        query, otlp_http, otlp_grpc, query_grpc = free_ports(4)
        self.endpoints = Endpoints.on_loopback(query, otlp_http, otlp_grpc)
        self._options = tuple(options)
        self._process: Process | None = None
        # JSON is YAML.
        self._file = self.folder / "jaeger.yaml"
        self._file.write_text(json.dumps(_configuration(query, query_grpc, otlp_http, otlp_grpc)))

    @property
    def pid(self) -> int:
        """The process id; only while it runs."""
        return self._running().pid

    @property
    def running(self) -> bool:
        """Whether there is a process, be it paused."""
        return self._process is not None and self._process.running

    @property
    def log(self) -> Path:
        """What the server prints."""
        return self.folder / "jaeger.log"

    def start(self) -> None:
        """Start the server and return when it takes spans and answers questions."""
        self._process = Process([jaeger_program(), f"--config={self._file}", *self._options], log=self.log)
        wait_until(
            lambda: not _what_is_missing(self.endpoints),
            seconds=STARTS_WITHIN,
            what="Jaeger is ready",
            process=self._process,
        )

    def kill(self) -> None:
        """End it now (SIGKILL); its traces are gone."""
        self._running().kill()

    def pause(self) -> None:
        """Stop its process in its tracks (SIGSTOP): its connections stay open and nothing answers."""
        self._running().send(signal.SIGSTOP)

    def resume(self) -> None:
        """Let a paused process go on (SIGCONT)."""
        self._running().send(signal.SIGCONT)

    def close(self) -> None:
        """End the server and delete its files."""
        if self.running:
            self.kill()
        remove(self.folder)

    def __enter__(self) -> Jaeger:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.close()

    def _running(self) -> Process:
        assert self._process is not None, "the server has not been started"
        return self._process


def require() -> None:
    """Have all that a local Jaeger needs. Raises NotInstalled if it is not built yet."""
    jaeger_program()


def until_ready(endpoints: Endpoints, *, seconds: float = STARTS_WITHIN) -> None:
    """Return when spans are taken and questions answered. Raises TimeoutError."""
    deadline = time.monotonic() + seconds
    while problem := _what_is_missing(endpoints):
        if time.monotonic() > deadline:
            raise TimeoutError(f"{problem} after {seconds:.0f} s")
        time.sleep(0.05)


def _what_is_missing(endpoints: Endpoints) -> str:
    """What does not answer yet, or nothing."""
    if _status(f"{endpoints.query}/api/v3/services") != http.HTTPStatus.OK:
        return f"nobody answers questions at {endpoints.query}"
    # No bytes are a request to export no span.
    if _status(f"{endpoints.otlp_http}/v1/traces", spans=b"") != http.HTTPStatus.OK:
        return f"nobody takes spans by HTTP at {endpoints.otlp_http}"
    grpc = urlsplit(endpoints.otlp_grpc)
    if not answers(grpc.port or 4317, host=grpc.hostname or LOOPBACK):
        return f"nobody takes spans by gRPC at {endpoints.otlp_grpc}"
    return ""


def _status(url: str, *, spans: bytes | None = None) -> int | None:
    """The status of the answer, or None if there is none."""
    parts = urlsplit(url)
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    connection = kind(parts.netloc, timeout=PATIENCE)
    try:
        headers = {} if spans is None else {"Content-Type": "application/x-protobuf"}
        connection.request("GET" if spans is None else "POST", parts.path, body=spans, headers=headers)
        return connection.getresponse().status
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()


def _configuration(query: int, query_grpc: int, otlp_http: int, otlp_grpc: int) -> dict[str, Any]:
    """Jaeger's own all-in-one, less what nobody asks for: that has a dozen listeners, each on a fixed port."""

    def listener(port: int) -> dict[str, str]:
        return {"endpoint": f"{LOOPBACK}:{port}"}

    return {
        "service": {
            "extensions": ["jaeger_storage", "jaeger_query"],
            "pipelines": {"traces": {"receivers": ["otlp"], "exporters": ["jaeger_storage_exporter"]}},
            "telemetry": {"metrics": {"level": "none"}, "logs": {"level": "warn"}},
        },
        "extensions": {
            "jaeger_storage": {"backends": {"here": {"memory": {"max_traces": 100_000}}}},
            "jaeger_query": {"storage": {"traces": "here"}, "http": listener(query), "grpc": listener(query_grpc)},
        },
        "receivers": {"otlp": {"protocols": {"http": listener(otlp_http), "grpc": listener(otlp_grpc)}}},
        "exporters": {"jaeger_storage_exporter": {"trace_storage": "here"}},
    }
