"""A server's process never outlives the one that started it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from servers.folders import is_alive, new_folder, temporary
from servers.ports import answers, free_ports
from servers.processes import Process, ServerFailed, wait_until

ROOT = Path(__file__).parents[2]
STARTS_ONE = """
import sys, time
from pathlib import Path
from servers.processes import Process

process = Process(["sleep", "600"], log=Path(sys.argv[1]))
print(process.pid, flush=True)
time.sleep(600)
"""


def test_a_process_ends_with_the_one_that_started_it_even_if_that_is_killed(tmp_path: Path) -> None:
    starter = subprocess.Popen(
        [sys.executable, "-c", STARTS_ONE, str(tmp_path / "log")], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    with starter:
        assert starter.stdout is not None
        pid = int(starter.stdout.readline())
        assert is_alive(pid)
        starter.kill()

    wait_until(lambda: not is_alive(pid), seconds=10, what="the process ends")


def test_a_process_that_is_stopped_ends_with_the_one_that_started_it(tmp_path: Path) -> None:
    starter = subprocess.Popen(
        [sys.executable, "-c", STARTS_ONE, str(tmp_path / "log")], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    with starter:
        assert starter.stdout is not None
        pid = int(starter.stdout.readline())
        os.kill(pid, signal.SIGSTOP)
        starter.kill()

    wait_until(lambda: not is_alive(pid), seconds=10, what="the process ends")


def test_a_killed_process_is_gone_when_kill_returns(tmp_path: Path) -> None:
    process = Process(["sleep", "600"], log=tmp_path / "log")

    process.kill()

    assert not process.running
    assert not is_alive(process.pid)


def test_a_process_that_ends_too_early_is_told_with_the_end_of_its_log(tmp_path: Path) -> None:
    process = Process(["sh", "-c", "echo no such disk >&2; exit 3"], log=tmp_path / "log")

    with pytest.raises(ServerFailed, match="the server answers: it has ended:\n    no such disk"):
        wait_until(lambda: False, seconds=10, what="the server answers", process=process)


def test_a_program_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(ServerFailed, match="/no/such/program cannot be run"):
        Process(["/no/such/program"], log=tmp_path / "log")


def test_free_ports_are_different_and_nobody_listens_there() -> None:
    ports = free_ports(20)

    assert len(set(ports)) == 20
    assert not [port for port in ports if answers(port)]


def test_what_a_process_left_behind_is_deleted_by_the_next_one_that_needs_a_folder() -> None:
    child = subprocess.Popen(["true"])
    child.wait()
    left = temporary() / f"kafka-of-{child.pid}-abcdefgh"
    left.mkdir()
    (left / "data").write_text("of nobody")

    mine = new_folder("kafka")
    another = new_folder("kafka")

    assert not left.exists()
    assert mine.exists()
    mine.rmdir()
    another.rmdir()
