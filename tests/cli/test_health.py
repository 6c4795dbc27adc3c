"""`run --health`: what probes are answered, whatever the services do."""

from __future__ import annotations

import http.client
import json
import signal
import socket
from typing import Any

import pytest

from microflow.errors import SettingsError
from microflow.socket_addresses import SocketAddress, read_address
from tests.cli.projects import SERVICE, SLOW, Child, Project

ANSWERED_WITHIN = 2.0


class Probe:
    """Asks a process as Kubernetes does."""

    def __init__(self, port: int) -> None:
        self._port = port

    def get(self, path: str) -> tuple[int, dict[str, Any]]:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=ANSWERED_WITHIN)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read())
        finally:
            connection.close()

    def status(self, path: str) -> int:
        return self.get(path)[0]


def a_free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port: int = taken.getsockname()[1]
        return port


def run(project: Project, *arguments: str) -> tuple[Child, Probe]:
    """A service that is ready, and a probe of it."""
    service = project.start("run", *(arguments or ("payments.py",)), "--health", "127.0.0.1:0")
    service.until_ready()
    service.until(lambda: [line for line in service.lines() if line.get("message") == "ready"])
    return service, Probe(next(line["health"] for line in service.lines() if line.get("message") == "ready"))


def test_a_service_that_runs_is_live_and_ready(project: Project) -> None:
    """Rule 23."""
    service, probe = run(project)

    assert probe.get("/live")[0] == 200
    assert probe.get("/ready") == (
        200,
        {"ready": True, "services": {"payments": {"ready": True, "missing": [], "limited": []}}},
    )
    assert probe.get("/anything") == (404, {"paths": ["/live", "/ready"]})
    assert service.stop() == 0


def test_a_process_without_partitions_is_ready(project: Project) -> None:
    """Rule 23: zero partitions counts. With more processes than partitions, the last one is a spare."""
    services = [run(project)[0] for _ in range(6)]

    spare, probe = run(project)
    spare.until(lambda: any(line.get("partitions") == 0 for line in spare.lines()))

    assert probe.status("/ready") == 200
    for each in [spare, *services]:
        each.send(signal.SIGTERM)


def test_a_handler_that_blocks_the_loop_is_not_live(project: Project) -> None:
    project.write("payments.py", SLOW.replace("{wait}", "__import__('time').sleep(60)"))
    service, probe = run(project)
    assert probe.status("/live") == 200

    project.json_lines("emit", "OrderAccepted", "order_id=o-1", "--key", "order_id")
    service.until(lambda: (project.folder / "began").exists())

    status, body = probe.get("/live")
    assert (status, body["live"]) == (503, False)
    assert "the event loop has not turned for" in body["missing"][0]
    assert probe.status("/ready") == 503


def test_a_service_that_drains_is_live_and_not_ready(project: Project) -> None:
    """Rule 23: not draining."""
    project.write("payments.py", SLOW.replace("{wait}", "await asyncio.sleep(60)"))
    service, probe = run(project)
    project.json_lines("emit", "OrderAccepted", "order_id=o-1", "--key", "order_id")
    service.until(lambda: (project.folder / "began").exists())

    service.send(signal.SIGTERM)
    service.until(lambda: "stopping" in service.stdout)
    service.until(lambda: probe.status("/ready") == 503)

    assert probe.get("/ready")[1]["services"]["payments"]["missing"] == ["it is stopping"]
    assert probe.status("/live") == 200


def test_a_service_is_not_ready_before_it_has_joined_its_group(
    project: Project,
) -> None:
    project.write("payments.py", f"{SERVICE}\nfrom contextlib import asynccontextmanager\n" + SLOW_LIFESPAN)
    port = a_free_port()
    service = project.start("run", "payments.py", "--health", f"127.0.0.1:{port}")
    service.until(lambda: (project.folder / "entered").exists())

    status, body = Probe(port).get("/ready")

    assert (status, body["services"]["payments"]["missing"]) == (503, ["it is not in its group yet"])
    assert Probe(port).status("/live") == 200
    (project.folder / "go").touch()
    service.until(lambda: Probe(port).status("/ready") == 200)


SLOW_LIFESPAN = """
import asyncio
from pathlib import Path
from microflow import Service

@asynccontextmanager
async def slow():
    Path("entered").touch()
    while not Path("go").exists():
        await asyncio.sleep(0.01)
    yield {}

service = Service("payments", lifespan=slow)
"""


def test_of_several_services_every_one_must_be_ready(project: Project) -> None:
    project.write("payments.py", f"{SERVICE}\nfrom contextlib import asynccontextmanager\n" + SLOW_LIFESPAN)
    project.write("shop.py")
    port = a_free_port()
    service = project.start("run", "payments.py", "shop.py", "--health", f"127.0.0.1:{port}")
    service.until_ready()

    status, body = Probe(port).get("/ready")

    assert (status, body["ready"]) == (503, False)
    assert {name: each["ready"] for name, each in body["services"].items()} == {"payments": False, "shop": True}


def test_somebody_who_connects_and_says_nothing_keeps_nobody_from_an_answer(project: Project) -> None:
    _, probe = run(project)
    silent = [socket.create_connection(("127.0.0.1", probe._port)) for _ in range(8)]

    assert probe.status("/ready") == 200
    for each in silent:
        each.close()


def test_an_address_that_somebody_has_is_told(project: Project) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]

        ended = project.run("run", "payments.py", "--health", f"127.0.0.1:{port}")

    assert ended.returncode == 2
    assert f"✗ --health 127.0.0.1:{port} cannot be had: Address already in use." in ended.stderr
    assert f"--health :{port + 1}" in ended.stderr


@pytest.mark.parametrize(
    ("text", "address"),
    [
        (":8081", SocketAddress("", 8081)),
        ("8081", SocketAddress("", 8081)),
        ("127.0.0.1:8081", SocketAddress("127.0.0.1", 8081)),
        ("localhost:8081", SocketAddress("localhost", 8081)),
        ("[::1]:8081", SocketAddress("::1", 8081)),
    ],
)
def test_an_address_is_a_port_with_or_without_its_host(text: str, address: SocketAddress) -> None:
    assert read_address(text, "--health") == address


@pytest.mark.parametrize("text", ["", "health", ":", "localhost", ":65536", "http://localhost:8081", "::1:8081"])
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(SettingsError, match="no address to listen on"):
        read_address(text, "--health")


def test_every_interface_answers_on_the_port_alone(project: Project) -> None:
    port = a_free_port()
    service = project.start("run", "payments.py", "--health", f":{port}")
    service.until_ready()

    assert Probe(port).status("/live") == 200
