"""A Jaeger that takes spans and finds them, on loopback only, and that can be killed, paused and started again."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as GrpcExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as HttpExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter

from servers.folders import is_alive
from servers.jaeger import Endpoints, Jaeger, until_ready
from servers.ports import answers
from servers.processes import ServerFailed, wait_until

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def server() -> Iterator[Jaeger]:
    with Jaeger() as server:
        yield server


def exporters(endpoints: Endpoints) -> dict[str, SpanExporter]:
    return {
        "http": HttpExporter(endpoint=f"{endpoints.otlp_http}/v1/traces"),
        "grpc": GrpcExporter(endpoint=endpoints.otlp_grpc, insecure=True),
    }


def export_a_span(exporter: SpanExporter, name: str) -> str:
    """Send one span and return its trace id."""
    provider = TracerProvider(resource=Resource({"service.name": "test-jaeger"}), shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    with provider.get_tracer(__name__).start_as_current_span(name) as span:
        trace = span.get_span_context().trace_id
    provider.shutdown()
    return f"{trace:032x}"


def span_names(endpoints: Endpoints, trace: str) -> list[str]:
    """The names of a trace's spans; none if it is not known."""
    try:
        with urllib.request.urlopen(f"{endpoints.query}/api/v3/traces/{trace}", timeout=5) as answer:
            found = json.load(answer)["result"]["resourceSpans"]
    except urllib.error.HTTPError:
        return []
    return [span["name"] for resource in found for scope in resource["scopeSpans"] for span in scope["spans"]]


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_a_span_that_was_exported_is_found(jaeger: Endpoints, protocol: str) -> None:
    trace = export_a_span(exporters(jaeger)[protocol], f"process by {protocol}")

    wait_until(lambda: bool(span_names(jaeger, trace)), seconds=20, what="the span is found")
    assert span_names(jaeger, trace) == [f"process by {protocol}"]


@pytest.mark.local_servers("jaeger")
@pytest.mark.skipif(sys.platform != "linux", reason="listeners are read from /proc")
def test_all_its_listeners_are_on_loopback(server: Jaeger) -> None:
    places = listeners(server.pid)

    assert len(places) == 4
    assert {host for host, _ in places} == {"127.0.0.1"}


@pytest.mark.local_servers("jaeger")
def test_a_killed_one_comes_back_on_its_ports_without_its_traces(server: Jaeger) -> None:
    trace = export_a_span(exporters(server.endpoints)["http"], "lost")
    pid, endpoints = server.pid, server.endpoints
    assert span_names(endpoints, trace) == ["lost"]

    server.kill()

    assert not is_alive(pid)
    server.start()
    assert server.endpoints == endpoints
    assert span_names(endpoints, trace) == []


def is_silent(server: Jaeger) -> bool:
    try:
        urllib.request.urlopen(f"{server.endpoints.query}/api/v3/services", timeout=0.5).close()
    except TimeoutError:
        return True
    return False


@pytest.mark.local_servers("jaeger")
def test_a_paused_one_answers_nothing_until_it_goes_on(server: Jaeger) -> None:
    server.pause()

    try:
        # Its threads stop one after the other, and one may be about to answer.
        wait_until(lambda: is_silent(server), seconds=10, what="it answers nothing")
    finally:
        server.resume()
    until_ready(server.endpoints)


@pytest.mark.local_servers("postgres", "jaeger")
def test_a_command_runs_beside_a_jaeger_of_its_own_if_that_is_asked_for_and_it_ends_with_it() -> None:
    """The span goes where OpenTelemetry's own variables say."""
    program = """
import json, os
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from tests.servers.test_jaeger import export_a_span, span_names
from servers.jaeger import Endpoints

jaeger = Endpoints(os.environ["JAEGER_URL"], os.environ["OTEL_EXPORTER_OTLP_ENDPOINT"], "")
trace = export_a_span(OTLPSpanExporter(), "told by the environment")
print(json.dumps([jaeger.query, span_names(jaeger, trace), os.environ["MICROFLOW_DATABASE"]]))
"""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("MICROFLOW_", "OTEL_"))}

    verb = ["-m", "servers", "run", "--only", "postgres", "--with", "jaeger"]

    done = subprocess.run(
        [sys.executable, *verb, "--", sys.executable, "-c", program],
        cwd=ROOT,
        env={**kept, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    query, names, database = json.loads(done.stdout)
    assert database.startswith("postgresql://")
    assert names == ["told by the environment"]
    assert f"Jaeger: {query}" in done.stderr
    assert not answers(int(query.rpartition(":")[2]))


@pytest.mark.local_servers("jaeger")
def test_nothing_of_a_server_is_left_when_its_block_ends() -> None:
    with Jaeger() as server:
        pid, folder = server.pid, server.folder

    assert not is_alive(pid)
    assert not folder.exists()


@pytest.mark.local_servers("jaeger")
def test_one_that_cannot_start_says_why_at_once() -> None:
    with (
        pytest.raises(ServerFailed, match="no_such_extension"),
        Jaeger(options=["--set=extensions.no_such_extension="]),
    ):
        raise AssertionError("it has started")


def test_an_address_may_leave_out_the_usual_ports() -> None:
    said = "http://collector:16686/,http://collector:14318"

    assert Endpoints.of("http://localhost:16686") == Endpoints(
        "http://localhost:16686", "http://localhost:4318", "http://localhost:4317"
    )
    assert Endpoints.of(said) == Endpoints("http://collector:16686", "http://collector:14318", "http://collector:4317")
    assert Endpoints.of(Endpoints.of(said).address) == Endpoints.of(said)


@pytest.mark.parametrize("address", ["localhost:16686", "http://", "http://a,http://b,http://c,http://d"])
def test_an_address_that_is_none_is_refused_with_what_would_be_one(address: str) -> None:
    with pytest.raises(ServerFailed, match=re.escape(f"http://localhost:4317; {address!r} is neither")):
        Endpoints.of(address)


def listeners(pid: int) -> list[tuple[str, int]]:
    """Hosts and ports on which a process listens."""
    mine = {os.readlink(handle) for handle in Path(f"/proc/{pid}/fd").iterdir()}
    found = []
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
            _, place, _, state, *_, inode = line.split()[:10]
            if state == "0A" and f"socket:[{inode}]" in mine:
                host, _, port = place.partition(":")
                found.append((".".join(str(byte) for byte in reversed(bytes.fromhex(host))), int(port, 16)))
    return found
