"""`run --workers`: one service in several processes, kept running, and stopped together."""

from __future__ import annotations

import os
import signal
import time

from tests.cli.projects import LONGEST, SLOW, Child, Project
from tests.cli.test_health import Probe, a_free_port


def ready_lines(service: Child) -> int:
    return sum(line.get("message") == "ready" for line in service.lines())


def workers_of(service: Child) -> list[int]:
    """The processes that a process has started."""
    with open(f"/proc/{service.process.pid}/task/{service.process.pid}/children", encoding="utf-8") as children:
        return [int(pid) for pid in children.read().split()]


def is_alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8") as stat:
            return stat.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def until_gone(pids: list[int]) -> None:
    end = time.monotonic() + LONGEST
    while any(is_alive(pid) for pid in pids):
        assert time.monotonic() < end
        time.sleep(0.02)


def test_workers_share_the_partitions_and_stop_together(project: Project) -> None:
    service = project.start("run", "payments.py", "--workers", "3")
    service.until(lambda: ready_lines(service) == 3)
    workers = workers_of(service)

    for number in range(20):
        project.json_lines("emit", "OrderAccepted", f"order_id=o-{number}", "--key", "order_id")
    service.until(lambda: len(service.reports()) == 20)

    assert len(workers) == 3
    assert {report["outcome"] for report in service.reports()} == {"done"}
    assert service.stop() == 0
    until_gone(workers)


def test_a_worker_that_is_killed_is_started_again_and_the_others_go_on(project: Project) -> None:
    port = a_free_port()
    service = project.start("run", "payments.py", "--workers", "2", "--health", f"127.0.0.1:{port}")
    service.until(lambda: ready_lines(service) == 2)
    before = workers_of(service)
    assert Probe(port).status("/ready") == 200

    os.kill(before[0], signal.SIGKILL)
    service.until(lambda: ready_lines(service) == 3)
    service.until(lambda: Probe(port).status("/ready") == 200)

    after = workers_of(service)
    assert before[1] in after
    assert before[0] not in after
    assert "worker 1 was killed by signal 9; starting again in 0.2 s" in service.stdout
    assert service.stop() == 0


def test_all_workers_are_asked_and_one_that_is_stopped_is_not_live(project: Project) -> None:
    port = a_free_port()
    service = project.start("run", "payments.py", "--workers", "2", "--health", f"127.0.0.1:{port}")
    service.until(lambda: ready_lines(service) == 2)
    stopped = workers_of(service)[1]

    os.kill(stopped, signal.SIGSTOP)
    status, body = Probe(port).get("/live")
    os.kill(stopped, signal.SIGCONT)

    assert (status, sorted(worker["live"] for worker in body["workers"])) == (503, [False, True])
    service.until(lambda: Probe(port).status("/live") == 200)
    assert service.stop() == 0


def test_what_keeps_the_first_from_starting_is_told_once(project: Project) -> None:
    project.write("payments.py", "import nonexistent_library\n")

    ended = project.run("run", "payments.py", "--workers", "3")

    assert ended.returncode == 2
    assert ended.stderr.count("nonexistent_library") == 2  # the error and its frame, of one process


def test_workers_whose_parent_is_killed_end_too(project: Project) -> None:
    service = project.start("run", "payments.py", "--workers", "2")
    service.until(lambda: ready_lines(service) == 2)
    workers = workers_of(service)

    service.kill()

    until_gone(workers)


def test_a_second_signal_ends_the_workers_at_once_too(project: Project) -> None:
    project.write("payments.py", SLOW.replace("{wait}", "await asyncio.sleep(60)"))
    service = project.start("run", "payments.py", "--workers", "2")
    service.until(lambda: ready_lines(service) == 2)
    workers = workers_of(service)
    project.json_lines("emit", "OrderAccepted", "order_id=o-1", "--key", "order_id")
    service.until(lambda: (project.folder / "began").exists())

    service.send(signal.SIGTERM)
    service.until(lambda: "stopping" in service.stdout)
    service.send(signal.SIGTERM)

    assert service.end() == 130
    until_gone(workers)


def test_a_log_in_memory_is_one_process_s(project: Project) -> None:
    ended = project.run("run", "payments.py", "--workers", "2", "--log", "memory:")

    assert ended.returncode == 2
    assert "✗ A log in memory is one process's, and --workers 2 makes several." in ended.stderr
