"""`memory:`: a try that leaves nothing behind, and no file that belongs to a log that is gone."""

from __future__ import annotations

import pytest

from tests.cli.projects import Project


def test_a_service_whose_log_is_in_memory_leaves_nothing_and_starts_again(project: Project) -> None:
    for _ in range(2):
        service = project.start("run", "payments.py", "--log", "memory:")
        service.until_ready()
        assert service.stop() == 0

    assert not (project.folder / ".microflow").exists()
    service = project.start("run", "payments.py")
    service.until_ready()


def test_services_that_share_a_log_in_memory_leave_nothing(project: Project) -> None:
    project.write("shipping.py")
    service = project.start("run", "payments.py", "shipping.py", "--log", "memory:")
    service.until(lambda: service.stdout.count('"ready"') == 2)

    assert service.stop() == 0
    assert not (project.folder / ".microflow").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--log", "memory:", "--database", "sqlite:///shop.db"], "The log is in memory, and the database of payments"),
        (["--database", "memory:"], "The database of payments is in memory, and the log is not."),
    ],
)
def test_a_file_beside_a_memory_is_refused(project: Project, arguments: list[str], said: str) -> None:
    ended = project.run("run", "payments.py", *arguments)

    assert ended.returncode == 2
    assert said in ended.stderr
    assert not (project.folder / "shop.db").exists()


def test_nothing_is_emitted_into_a_log_that_nobody_can_read(project: Project) -> None:
    ended = project.run("emit", "OrderAccepted", "order_id=o-1", "--key", "order_id", "--log", "memory:")

    assert ended.returncode == 2
    assert ended.stdout == ""
    assert "Nobody could read" in ended.stderr
    assert "--log local:PATH" in ended.stderr
