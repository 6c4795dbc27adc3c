"""The state is deleted under `microflow run`: the command ends with the exit code of what cannot be reached."""

from __future__ import annotations

import shutil

from tests.cli.projects import Project


def test_a_service_whose_state_is_deleted_ends_with_3_and_one_sentence(project: Project) -> None:
    service = project.start("run", "payments.py")
    service.until_ready()

    shutil.rmtree(project.folder / ".microflow")

    assert service.process.wait(timeout=10) == 3
    assert "is gone: it was deleted while it was open" in service.stderr
    assert "heartbeat" not in service.stderr
