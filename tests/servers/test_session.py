"""One server for a whole test session, a loud word where there is none, and nothing left when the session is gone."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from servers.folders import temporary

ROOT = Path(__file__).parents[2]

ASKS_FOR_BOTH = """
import sys, time


def test_both(kafka, postgres_url):
    print("servers", kafka.address, postgres_url, file=sys.stderr, flush=True)
    time.sleep(60)
"""
ASKS_TWICE = """
import pytest

@pytest.mark.parametrize("turn", range(4))
def test_which(turn, postgres, postgres_url, record_property):
    record_property("postgres", postgres.address)
    record_property("database", postgres_url)
"""
ASKS_FOR_KAFKA = """
def test_one(kafka):
    raise AssertionError("there is no Kafka")

def test_two(kafka):
    raise AssertionError("there is no Kafka")
"""
STARTS_ITS_OWN = """
import pytest

@pytest.mark.local_servers("kafka")
def test_hard():
    raise AssertionError("there is no Kafka")
"""
ASKS_FOR_JAEGER = """
def test_one(jaeger):
    raise AssertionError("there is no Jaeger")
"""
ASKS_FOR_NOTHING = """
def test_nothing():
    pass
"""


def command(folder: Path, source: str, *arguments: str) -> list[str]:
    """A pytest session of its own, in a folder with one test file and our fixtures."""
    (folder / "test_inner.py").write_text(source)
    (folder / "conftest.py").write_text("pytest_plugins = ['servers.fixtures']\n")
    (folder / "pytest.ini").write_text("[pytest]\n")
    return [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--rootdir", str(folder), *arguments, str(folder)]


def environment(**variables: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("MICROFLOW_", "PYTEST_"))}
    return {**kept, "PYTHONPATH": str(ROOT), **variables}


def processes_of(session: str) -> list[str]:
    """The command lines of the keeper and of all that it started, whoever is their parent now."""
    found: dict[int, tuple[int, str]] = {}
    for line in subprocess.run(
        ["ps", "-ww", "-eo", "pid=,ppid=,args="], capture_output=True, text=True, check=True
    ).stdout.splitlines():
        pid, parent, arguments = line.split(None, 2)
        found[int(pid)] = (int(parent), arguments)
    ours = {pid for pid, (_, arguments) in found.items() if f"session-{session}" in arguments}
    while more := {pid for pid, (parent, _) in found.items() if parent in ours} - ours:
        ours |= more
    return [f"{pid} {found[pid][1]}" for pid in sorted(ours)]


def gone(pids: set[int], *, seconds: float) -> set[int]:
    """Those that are still there after so long."""
    deadline = time.monotonic() + seconds
    while pids and time.monotonic() < deadline:
        pids = {pid for pid in pids if Path(f"/proc/{pid}").exists()}
        time.sleep(0.05)
    return pids


@contextmanager
def a_session_that_waits(folder: Path, session: str) -> Iterator[tuple[subprocess.Popen[str], set[int]]]:
    """A pytest process inside a test that uses both servers, and the processes that it brought to life."""
    running = subprocess.Popen(
        command(folder, ASKS_FOR_BOTH, "-s"),
        cwd=ROOT,
        env=environment(PYTEST_XDIST_TESTRUNUID=session),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert running.stderr is not None
    with running, running.stderr:
        try:
            said = running.stderr.readline()
            assert said.startswith("servers"), said + running.stderr.read()
            lines = processes_of(session)
            assert any("kafka.Kafka" in line for line in lines), lines
            assert any("postgres" in line for line in lines)
            yield running, {int(line.split()[0]) for line in lines}
        finally:
            running.kill()


def test_a_killed_session_leaves_no_process_and_no_files(tmp_path: Path) -> None:
    session = f"killed-{os.getpid()}"
    with a_session_that_waits(tmp_path, session) as (running, pids):
        running.kill()
        running.wait()

        assert gone(pids, seconds=20) == set()

    assert not (temporary() / f"session-{session}").exists()


def test_servers_end_with_their_keeper_when_that_is_killed(tmp_path: Path) -> None:
    session = f"keeper-{os.getpid()}"
    with a_session_that_waits(tmp_path, session) as (_, pids):
        [keeper] = [int(line.split()[0]) for line in processes_of(session) if "servers.session" in line]
        os.kill(keeper, signal.SIGKILL)

        assert gone(pids - {keeper}, seconds=20) == set()


def test_the_workers_of_a_session_share_a_server_and_each_test_has_a_database_of_its_own(tmp_path: Path) -> None:
    report = tmp_path / "report.xml"
    done = subprocess.run(
        command(tmp_path, ASKS_TWICE, "-n", "2", f"--junit-xml={report}"),
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stdout
    servers = re.findall(r'name="postgres" value="(.+?)"', report.read_text())
    databases = re.findall(r'name="database" value="(.+?)"', report.read_text())
    assert len(servers) == 4
    assert len(set(servers)) == 1
    assert len(set(databases)) == 4


@pytest.fixture
def nothing_here(tmp_path: Path) -> dict[str, str]:
    """An environment in which Kafka and Jaeger can come from nowhere."""
    (tmp_path / "empty").mkdir()
    return environment(
        PATH=str(tmp_path / "empty"), XDG_CACHE_HOME=str(tmp_path / "cache"), DOCKER_HOST="unix:///nowhere/docker.sock"
    )


def test_tests_without_their_server_are_skipped_and_the_last_lines_say_so(
    tmp_path: Path, nothing_here: dict[str, str]
) -> None:
    done = subprocess.run(
        command(tmp_path, ASKS_FOR_KAFKA), cwd=ROOT, env=nothing_here, capture_output=True, text=True, check=False
    )

    assert done.returncode == 0, done.stdout
    assert "servers that are missing" in done.stdout
    assert "2 tests skipped. Kafka is missing: MICROFLOW_TEST_KAFKA is not set" in done.stdout
    assert "`mvn` is not on PATH" in done.stdout


def test_a_jaeger_that_is_missing_is_said_with_what_would_help(tmp_path: Path, nothing_here: dict[str, str]) -> None:
    done = subprocess.run(
        command(tmp_path, ASKS_FOR_JAEGER), cwd=ROOT, env=nothing_here, capture_output=True, text=True, check=False
    )

    assert done.returncode == 0, done.stdout
    assert "1 tests skipped. Jaeger is missing: MICROFLOW_TEST_JAEGER is not set" in done.stdout
    assert "`go` is not on PATH" in done.stdout
    assert "Start Docker, or set MICROFLOW_TEST_JAEGER=http://localhost:16686, or install Go" in done.stdout


def test_a_test_that_is_hard_on_a_server_is_skipped_where_none_can_be_started(
    tmp_path: Path, nothing_here: dict[str, str]
) -> None:
    done = subprocess.run(
        command(tmp_path, STARTS_ITS_OWN), cwd=ROOT, env=nothing_here, capture_output=True, text=True, check=False
    )

    assert done.returncode == 0, done.stdout
    assert "1 tests skipped. Kafka is not installed here" in done.stdout


def test_a_run_without_servers_leaves_out_what_asks_for_one(tmp_path: Path) -> None:
    done = subprocess.run(
        command(tmp_path, ASKS_FOR_KAFKA + STARTS_ITS_OWN + ASKS_FOR_NOTHING, "--without-servers"),
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stdout
    assert "1 passed, 3 deselected" in done.stdout


def test_a_required_server_that_is_missing_fails_the_test(tmp_path: Path, nothing_here: dict[str, str]) -> None:
    done = subprocess.run(
        command(tmp_path, ASKS_FOR_KAFKA),
        cwd=ROOT,
        env={**nothing_here, "MICROFLOW_TEST_REQUIRE": "postgres, kafka"},
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 1, done.stdout
    assert "MICROFLOW_TEST_REQUIRE asks for kafka. Kafka is missing" in done.stdout
    assert "2 errors" in done.stdout
