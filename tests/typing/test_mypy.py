"""mypy finds in a user's file what microflow would tell when it runs, and accepts what is right."""

from __future__ import annotations

import getpass
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import pytest

HERE = Path(__file__).parent
SETTINGS = """\
[mypy]
strict = True
show_error_codes = True
"""
EXPECTED = re.compile(r"# refused: ([a-z-]+)$")
ERROR = re.compile(r"(?P<file>\w+)\.py:(?P<line>\d+): error: .*\[(?P<code>[a-z-]+)\]$")


@pytest.fixture(scope="module")
def found() -> Mapping[str, dict[int, set[str]]]:
    """The errors of both files as a user's own mypy finds them: without our settings, outside of our checkout."""
    folder = Path(tempfile.gettempdir()) / f"microflow-typing-{getpass.getuser()}"
    folder.mkdir(exist_ok=True)
    settings = folder / "mypy.ini"
    settings.write_text(SETTINGS)
    files = [HERE / "good.py", HERE / "bad.py"]
    ran = subprocess.run(
        [
            sys.executable,
            "-m",
            "mypy",
            "--config-file",
            settings,
            "--no-error-summary",
            "--cache-dir",
            folder / "cache",
            *files,
        ],
        check=False,
        capture_output=True,
        text=True,
        timeout=110,
        cwd=folder,
    )
    assert ran.stderr == ""
    errors: dict[str, dict[int, set[str]]] = {"good": {}, "bad": {}}
    for line in ran.stdout.splitlines():
        if error := ERROR.search(line):
            errors[error["file"]].setdefault(int(error["line"]), set()).add(error["code"])
        else:
            assert ": note: " in line, line
    return errors


def test_what_is_right_is_accepted(found: Mapping[str, dict[int, set[str]]]) -> None:
    assert found["good"] == {}


def test_what_is_wrong_is_refused_at_its_line_and_nothing_else_is(found: Mapping[str, dict[int, set[str]]]) -> None:
    lines = (HERE / "bad.py").read_text().splitlines()
    expected = {number: {code[1]} for number, line in enumerate(lines, 1) if (code := EXPECTED.search(line))}

    assert len(expected) >= 30
    assert found["bad"] == expected
