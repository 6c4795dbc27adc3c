"""A service and a collector that is away, slow or wrong: nothing waits for it, one line says so, and the end comes."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tests.cli.projects import Project

TELLS = "spans do not reach"


class Failing(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.send_error(500)

    def log_message(self, *_: object) -> None: ...


@pytest.fixture(params=["refuses", "hangs", "answers 500"])
def collector(request: pytest.FixtureRequest) -> Iterator[str]:
    if request.param == "answers 500":
        server = ThreadingHTTPServer(("127.0.0.1", 0), Failing)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()
        server.server_close()
        return
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        if request.param == "hangs":
            listener.listen()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


def test_a_collector_that_takes_nothing_keeps_nobody_waiting(project: Project, collector: str) -> None:
    project.write("payments.py")
    environment = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": collector,
        "OTEL_EXPORTER_OTLP_TIMEOUT": "1",
        "OTEL_BSP_SCHEDULE_DELAY": "50",
    }
    service = project.start("run", "payments.py", environment=environment)
    service.until_ready()
    for number in range(3):
        project.run("emit", "OrderAccepted", f"order_id=o-{number}", "total=5", "--app", "payments.py")
    service.until(lambda: service.stdout.count(TELLS))
    stopped = service.stop()

    assert stopped == 0
    assert service.stdout.count(TELLS) == 1, service.stdout
    assert collector in service.stdout
    assert "Traceback" not in service.stdout + service.stderr
    assert len(service.reports()) == 3


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"OTEL_SDK_DISABLED": "true", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"},
        {"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"},
    ],
)
def test_nobody_makes_spans_that_nobody_wants(project: Project, environment: dict[str, str]) -> None:
    project.write("payments.py")
    service = project.start("run", "payments.py", environment=environment)
    service.until_ready()
    project.run("emit", "OrderAccepted", "order_id=o-1", "total=5", "--app", "payments.py")
    service.until(service.reports)

    assert service.stop() == 0
    assert TELLS not in service.stdout + service.stderr


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"OTEL_TRACES_EXPORTER": "nosuch"}, "OTEL_TRACES_EXPORTER names 'nosuch'"),
        (
            {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://localhost:4318", "OTEL_EXPORTER_OTLP_PROTOCOL": "smoke"},
            "OTEL_EXPORTER_OTLP_PROTOCOL is 'smoke'",
        ),
    ],
)
def test_a_variable_that_names_what_is_not_there_is_told(
    project: Project, environment: dict[str, str], said: str
) -> None:
    project.write("payments.py")

    ended = project.run("run", "payments.py", environment=environment)

    assert ended.returncode == 2
    assert said in ended.stderr
    assert "Traceback" not in ended.stderr
