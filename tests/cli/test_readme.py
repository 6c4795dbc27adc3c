"""The service on the README's first page runs as it stands there."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from tests.cli.projects import Project

README = Path(__file__).parents[2] / "README.md"


def first(language: str) -> str:
    """The README's first piece of code in a language."""
    found = re.search(rf"^```{language}\n(.*?)^```$", README.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    assert found is not None
    return found[1]


def test_the_service_of_the_first_page_runs_with_the_table_that_is_shown(project: Project) -> None:
    path = project.write("payments.py", first("python"))
    project.write("payments.sql", first("sql"))

    unused = subprocess.run(
        [sys.executable, "-m", "ruff", "check", "--isolated", "--select", "F", str(path)],
        check=False, capture_output=True, text=True,
    )  # fmt: skip
    service = project.start("run", "payments.py")
    service.until_ready()
    project.json_lines("emit", "OrderAccepted", "order_id=o-1", "total=10", "--key", "order_id", "--app", "payments.py")
    service.until(service.reports)

    assert unused.returncode == 0, unused.stdout
    assert [report["outcome"] for report in service.reports()] == ["done"]
