"""Fixtures of the command's tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.projects import Project


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Project]:
    """A folder with one service, `payments.py`; whatever was started in it is ended."""
    project = Project(tmp_path)
    project.write("payments.py")
    yield project
    for child in project.children:
        child.kill()
