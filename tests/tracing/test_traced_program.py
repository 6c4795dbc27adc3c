"""A program that traces with a provider of its own: what happens here is part of its traces."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.cli.projects import LONGEST, clean_environment

ROOT = Path(__file__).parents[2]


def test_a_flow_that_begins_in_a_traced_request_hangs_under_it(tmp_path: Path) -> None:
    """`Outbox.append` and `running` use the provider that the program has set up, whatever the environment says."""
    ended = subprocess.run(
        [sys.executable, "-m", "tests.tracing.program"],
        cwd=tmp_path,
        env=clean_environment(PYTHONPATH=str(ROOT), OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:1"),
        capture_output=True,
        text=True,
        timeout=LONGEST,
        check=False,
    )

    request, attempt = "POST /orders", "POST /orders > create Placed > process Placed"
    assert sorted(ended.stdout.splitlines()) == [
        request,
        f"{request} > create Placed",
        attempt,
        f"{attempt} > charge",
        f"{request} > create Placed > send Placed",
    ], ended.stderr
