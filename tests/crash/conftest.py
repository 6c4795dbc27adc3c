"""What the crash tests share: one nursery, because importing everything takes longer than most of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.crash.grounds import EmbeddedGround, Ground
from tests.crash.harness import Chain, Nursery, a_nursery
from tests.crash.real_ground import RealGround


@pytest.fixture(scope="session")
def nursery() -> Iterator[Nursery]:
    with a_nursery() as nursery:
        yield nursery


@pytest.fixture(
    params=["embedded", pytest.param("real servers", marks=[pytest.mark.real_servers, pytest.mark.torture])]
)
def ground(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Ground]:
    """Files in a folder; with `make torture` Kafka and PostgreSQL too, whose quick faults are in `tests/faults`."""
    if request.param == "embedded":
        yield EmbeddedGround(tmp_path)
        return
    kafka, postgres = (request.getfixturevalue(kind) for kind in ("kafka", "postgres"))
    with closing(RealGround(kafka.address, postgres.address)) as ground:
        yield ground


@pytest.fixture
def chain(nursery: Nursery, tmp_path: Path, ground: Ground) -> Iterator[Chain]:
    with Chain(nursery, tmp_path, ground=ground) as chain:
        yield chain
