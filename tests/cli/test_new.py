"""`microflow new`: a project that runs."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tests.cli.projects import Project, clean_environment


@pytest.mark.parametrize("name", ["shop", "card-company", "class", "email"])
def test_a_new_project_passes_its_own_test(project: Project, name: str) -> None:
    told = project.json_lines("new", name)

    assert all(Path(file).is_file() for file in told[0]["files"])
    tested = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"],
        cwd=project.folder / name,
        env=clean_environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert tested.returncode == 0, tested.stdout
    assert "1 passed" in tested.stdout


def test_a_new_project_runs_as_its_readme_says(project: Project) -> None:
    project.json_lines("new", "shop")
    shop = replace(project, folder=project.folder / "shop")
    service = shop.start("run", "shop.py")
    service.until_ready()

    shop.json_lines("emit", "SignedUp", "email=ada@example.org", "name=Ada", "--key", "email")

    service.until(lambda: [report["outcome"] for report in service.reports()] == ["done"])
    assert [each["type"] for each in service.reports()[0]["emitted"]] == ["Greeted"]
    assert service.stop() == 0


def test_a_service_of_a_new_project_has_at_most_25_lines(project: Project) -> None:
    project.json_lines("new", "shop")

    assert len((project.folder / "shop" / "shop.py").read_text().splitlines()) <= 25


@pytest.mark.parametrize(("name", "why"), [("Shop!", "no name for a service"), ("taken", "there already")])
def test_what_cannot_be_made_is_told(project: Project, name: str, why: str) -> None:
    project.write("taken/file.txt", "mine")

    refused = project.run("new", name)

    assert refused.returncode == 2
    assert why in refused.stderr
    assert (project.folder / "taken" / "file.txt").read_text() == "mine"
