"""What all tests share: the fixtures of servers/fixtures.py (`kafka`, `postgres`, `jaeger`, …), and the last lines."""

from __future__ import annotations

import pytest

pytest_plugins = ["servers.fixtures"]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """How long it took until all worked again, from the tests that break things."""
    reports = [*terminalreporter.stats.get("passed", []), *terminalreporter.stats.get("failed", [])]
    recoveries = [said for report in reports for name, said in report.user_properties if name == "recovery"]
    if recoveries:
        terminalreporter.section("until an order placed afterwards had gone all the way")
    for said in sorted(recoveries):
        terminalreporter.write_line(said)
