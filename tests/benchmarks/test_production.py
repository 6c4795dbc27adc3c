"""What is measured on real servers instead of the neighbours is found and told, whatever it is."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from servers.finding import Found

PRODUCTION = Path(__file__).parents[2] / "benchmarks" / "production.py"

pytestmark = pytest.mark.torture


def figures(what: str, kafka: Found, database: str) -> dict[str, Any]:
    environment = os.environ | {"MICROFLOW_KAFKA": kafka.address, "MICROFLOW_DATABASE": database}
    command = [sys.executable, str(PRODUCTION), "--quick", "--instead", what]
    finished = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100, check=False)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    found: dict[str, Any] = json.loads(finished.stdout.splitlines()[-1])
    return found


def test_a_relay_is_measured_beside_an_old_snapshot(kafka: Found, postgres_url: str) -> None:
    found = figures("old-snapshot", kafka, postgres_url)

    assert found["ratio"] > 0
    assert found["dead"] == 4_000


def test_a_long_run_is_measured_in_tenths(kafka: Found, postgres_url: str) -> None:
    found = figures("long-run", kafka, postgres_url)

    assert len(found["rates"]) == len(found["memory"]) == 10
    assert min(found["rates"]) > 0
