"""Where a server comes from, in which order, and what is said when it comes from nowhere."""

from __future__ import annotations

import dataclasses
import http.server
import os
import socketserver
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import pytest

from servers.docker import engine
from servers.downloads import NotInstalled
from servers.finding import KINDS, Found, Missing, a_server
from servers.processes import ServerFailed

ROOT = Path(__file__).parents[2]
NOWHERE = "unix:///nowhere/docker.sock"


class Ping(http.server.BaseHTTPRequestHandler):
    """What a Docker engine says when it is asked whether it is there."""

    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/_ping" else 404)
        self.end_headers()

    def address_string(self) -> str:
        return "a socket"

    def log_message(self, *_: object) -> None:
        """Nothing."""


@pytest.fixture
def docker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A Docker engine, as far as one question tells."""
    address = f"unix://{tmp_path}/docker.sock"
    monkeypatch.setenv("DOCKER_HOST", address)
    with socketserver.UnixStreamServer(str(tmp_path / "docker.sock"), Ping) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield address
        server.shutdown()
        thread.join()


@pytest.fixture
def no_docker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", NOWHERE)


def not_installed() -> AbstractContextManager[str]:
    raise NotInstalled("nothing of it is here")


def refuse(address: str) -> None:
    raise TimeoutError(f"nobody answers at {address}")


ANYWHERE = dataclasses.replace(
    KINDS["kafka"],
    variable="MICROFLOW_TEST_ANYTHING",
    local=lambda: nullcontext("local:1"),
    container=lambda engine: nullcontext(f"container of {engine}"),
    ready=lambda address: None,
)


def test_an_address_in_the_environment_comes_first(docker: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ANYWHERE.variable, "given:9092")

    with a_server(ANYWHERE) as found:
        assert found == Found("given:9092", ANYWHERE.variable)


def test_an_address_that_does_not_answer_is_a_failure_and_nothing_else_is_tried(
    docker: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(ANYWHERE.variable, "given:9092")

    with (
        pytest.raises(
            ServerFailed, match="MICROFLOW_TEST_ANYTHING names does not answer: nobody answers at given:9092"
        ),
        a_server(dataclasses.replace(ANYWHERE, ready=refuse)),
    ):
        raise AssertionError("there is no server")


def test_a_docker_engine_that_answers_comes_before_a_local_install(docker: str) -> None:
    with a_server(ANYWHERE) as found:
        assert found == Found(f"container of {docker}", "Docker")


@pytest.mark.usefixtures("no_docker")
def test_a_local_install_comes_last() -> None:
    with a_server(ANYWHERE) as found:
        assert found == Found("local:1", "local install")


@pytest.mark.usefixtures("no_docker")
@pytest.mark.parametrize("kind", KINDS.values(), ids=lambda kind: kind.name)
def test_a_server_that_comes_from_nowhere_is_missing_with_what_was_tried_and_what_would_help(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not isinstance(kind, str)
    monkeypatch.delenv(kind.variable, raising=False)

    with pytest.raises(Missing) as missing, a_server(dataclasses.replace(kind, local=not_installed)):
        raise AssertionError("there is no server")

    said = str(missing.value)
    assert said.startswith(f"{kind.title} is missing: {kind.variable} is not set, no Docker engine answers")
    assert "nothing of it is here" in said
    assert f"set {kind.variable}={kind.example}" in said
    assert "apt install" in said


def test_an_engine_that_is_gone_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/gone.sock")

    assert engine() is None


def test_testcontainers_is_not_imported_where_no_docker_engine_answers() -> None:
    program = """
import sys
from servers.docker import engine
import servers.fixtures
assert engine() is None
print(sorted({"docker", "testcontainers"} & set(sys.modules)))
"""
    environment = {**os.environ, "DOCKER_HOST": NOWHERE}

    said = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )

    assert said.stdout.strip() == "[]"
