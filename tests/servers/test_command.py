"""`python -m servers run -- COMMAND`, ended by a signal: neither the command nor a server nor a file is left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from servers.folders import is_alive, new_folder, remove, temporary
from servers.processes import wait_until

pytestmark = pytest.mark.local_servers("postgres")

ROOT = Path(__file__).parents[2]
COMMAND = "sleep 600 & echo $! $$; wait"


@contextmanager
def a_command_that_runs() -> Iterator[tuple[subprocess.Popen[str], list[int]]]:
    """The process that has started a server and a command, and the ids of the command and of its child."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MICROFLOW_")}
    running = subprocess.Popen(
        [sys.executable, "-m", "servers", "run", "--only", "postgres", "--", "sh", "-c", COMMAND],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),  # also where the tests run under nohup
    )
    with running:
        assert running.stdout is not None
        pids = [int(pid) for pid in running.stdout.readline().split()]
        try:
            assert len(pids) == 2
            yield running, pids
        finally:
            running.kill()
            for pid in pids:
                if is_alive(pid):
                    os.kill(pid, signal.SIGKILL)


def folders_of(running: subprocess.Popen[str]) -> list[Path]:
    return list(temporary().glob(f"*-of-{running.pid}-*"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_the_command_and_all_that_it_started_and_leaves_no_file(number: signal.Signals) -> None:
    with a_command_that_runs() as (running, pids):
        assert folders_of(running)

        running.send_signal(number)

        assert running.wait(timeout=60) == 128 + number
        wait_until(lambda: not any(is_alive(pid) for pid in pids), seconds=10, what="the command ends")
        assert not folders_of(running)


def test_what_is_left_after_a_kill_is_deleted_by_the_next_run() -> None:
    with a_command_that_runs() as (running, [_, command]):
        running.kill()
        running.wait()
        assert folders_of(running)

        wait_until(lambda: not is_alive(command), seconds=10, what="the command ends")
        remove(new_folder("postgres"))

        assert not folders_of(running)
