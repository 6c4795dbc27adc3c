"""The servers as pytest fixtures, shared by all processes of a session, and a loud word where one is missing."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import NoReturn

import pytest

from servers.downloads import NotInstalled
from servers.finding import KINDS, Found, Missing
from servers.jaeger import Endpoints
from servers.postgres import fresh_database
from servers.session import Session

REQUIRE = "MICROFLOW_TEST_REQUIRE"


@pytest.fixture(scope="session")
def servers() -> Iterator[Session]:
    """The servers that this test session uses; each is started when a test first needs it."""
    # pytest-xdist tells all workers the same id; an inner session that a test starts shares its servers, too.
    session = Session(os.environ.get("PYTEST_XDIST_TESTRUNUID") or str(os.getpid()))
    yield session
    session.close()


@pytest.fixture(scope="session")
def kafka(servers: Session) -> Found:
    """The session's Kafka: `kafka.address` are its bootstrap servers. All tests share it, so name topics and groups
    uniquely; a test that is hard on its broker starts one of its own (`servers.kafka.Kafka`)."""
    return _found(servers, "kafka")


@pytest.fixture(scope="session")
def postgres(servers: Session) -> Found:
    """The session's PostgreSQL: `postgres.address` is the URL of its database `postgres`. A test that restarts or fills
    its server starts one of its own (`servers.postgres.Postgres`), which syncs what it commits; this one does not."""
    return _found(servers, "postgres")


@pytest.fixture
def postgres_url(postgres: Found) -> Iterator[str]:
    """The URL of a fresh, empty database on the session's PostgreSQL, dropped after the test."""
    with fresh_database(postgres.address) as url:
        yield url


@pytest.fixture(scope="session")
def jaeger(servers: Session) -> Endpoints:
    """The session's Jaeger: spans go to `jaeger.otlp_http` or `jaeger.otlp_grpc`, and are found at `jaeger.query`. All
    tests share it, so name services uniquely; one that is hard on it starts its own (`servers.jaeger.Jaeger`)."""
    return Endpoints.of(_found(servers, "jaeger").address)


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--without-servers` is for a run beside another one that has shown what needs them."""
    parser.addoption("--without-servers", action="store_true", help="run only the tests that need no real server")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what asks for a server, if that was said."""
    if config.getoption("--without-servers"):
        left_out = [item for item in items if _needs_a_server(item)]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what starts servers of its own where they cannot be started, unless they are required."""
    for mark in item.iter_markers("local_servers"):
        for kind in mark.args:
            try:
                KINDS[kind].local()
            except NotInstalled as missing:
                _refuse(kind, f"{KINDS[kind].title} is not installed here: {missing}")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say in full what was not tested for want of a server; an `s` among dots is easily overlooked."""
    counts: dict[str, int] = {}
    for report in terminalreporter.stats.get("skipped", []):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        _, found, missing = reason.partition(Missing.__name__ + ": ")
        if found:
            counts[missing] = counts.get(missing, 0) + 1
    if counts:
        terminalreporter.section("servers that are missing", yellow=True, bold=True)
    for missing, count in counts.items():
        terminalreporter.write_line(f"{count} tests skipped. {missing}", yellow=True)


def _found(servers: Session, kind: str) -> Found:
    try:
        return servers.server(kind)
    except Missing as missing:
        _refuse(kind, str(missing))


def _refuse(kind: str, missing: str) -> NoReturn:
    """A test without its server is a failure if the server is required, else skipped."""
    if kind in (each.strip() for each in os.environ.get(REQUIRE, "").split(",")):
        pytest.fail(f"{REQUIRE} asks for {kind}. {missing}", pytrace=False)
    pytest.skip(f"{Missing.__name__}: {missing}")


def _needs_a_server(item: pytest.Item) -> bool:
    marked = any(item.get_closest_marker(mark) for mark in ("local_servers", "real_servers"))
    return marked or "servers" in getattr(item, "fixturenames", ())
