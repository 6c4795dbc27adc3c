"""The benchmark of the embedded default runs and says what it found, whatever that is."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

EMBEDDED = Path(__file__).parents[2] / "benchmarks" / "embedded.py"
TINY = ["--quick", "--chains", "60", "--seconds", "0.5", "--events", "400", "--workflows", "2"]


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("benchmark")
    command = [sys.executable, str(EMBEDDED), *TINY, "--without-dbos", "--folder", str(folder)]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert not list(folder.iterdir()), "it leaves nothing behind"
    return finished.stdout


def test_every_part_of_the_benchmark_finds_a_figure(output: str) -> None:
    figures = json.loads(output.splitlines()[-1])

    assert figures["floor_rate"] > 0
    assert figures["chains"]["median"] > 0
    assert figures["chains_one_process"]["median"] > 0
    assert figures["cpu_per_event_us"]["median"] > 0
    assert figures["latency_ms"]["committed"]["p50"] > 0
    assert figures["growth"]["end"]["events"] == 400


def test_what_is_in_the_line_of_json_is_in_the_table(output: str) -> None:
    for line in ("records/s", "chains/s", "CPU per event", "handled and committed", "slope of the memory"):
        assert line in output


def test_without_dbos_it_says_so_loudly(tmp_path: Path) -> None:
    # A folder that hides whatever dbos is installed, so that its absence is seen wherever this runs.
    program = (
        "import importlib.util, runpy, sys\n"
        "found = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda name, *rest: None if name == 'dbos' else found(name, *rest)\n"
        f"sys.argv = [{str(EMBEDDED)!r}, *{[*TINY, '--folder', str(tmp_path)]!r}]\n"
        f"sys.path.insert(0, {str(EMBEDDED.parent)!r})\n"
        f"runpy.run_path({str(EMBEDDED)!r}, run_name='__main__')\n"
    )
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=100, check=False)

    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.startswith("*** DBOS IS NOT INSTALLED")
