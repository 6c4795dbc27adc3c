"""What the fault tests share. Each stands on servers of its own, from a local install, so that it can break them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeAlias

import pytest

from servers.kafka import Kafka
from servers.postgres import Postgres
from tests.crash.harness import Nursery, a_nursery

Recovery: TypeAlias = Callable[[str, float], None]


@pytest.fixture(scope="session")
def nursery() -> Iterator[Nursery]:
    with a_nursery() as nursery:
        yield nursery


@pytest.fixture(scope="module")
def broker() -> Iterator[Kafka]:
    """A Kafka of one broker; a test that breaks it mends it."""
    with Kafka(proxied=True) as kafka:
        yield kafka


@pytest.fixture(scope="module")
def cluster() -> Iterator[Kafka]:
    """Three brokers; of three replicas, two must have a record before it counts as stored."""
    with Kafka(brokers=3) as kafka:
        yield kafka


@pytest.fixture(scope="module")
def database() -> Iterator[Postgres]:
    """A PostgreSQL that syncs what it commits; a test that breaks it mends it."""
    with Postgres() as server:
        yield server


@pytest.fixture
def recovery(record_property: Callable[[str, object], None]) -> Recovery:
    """Notes how long something took to work again; the last lines of the run show all of them."""

    def note(what: str, seconds: float) -> None:
        record_property("recovery", f"{what}: {seconds:.1f} s")

    return note
