"""What the crash tests share: one nursery, because importing everything takes longer than most of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.crash.harness import Chain, Nursery, a_nursery


@pytest.fixture(scope="session")
def nursery() -> Iterator[Nursery]:
    with a_nursery() as nursery:
        yield nursery


@pytest.fixture
def chain(nursery: Nursery, tmp_path: Path) -> Iterator[Chain]:
    with Chain(nursery, tmp_path) as chain:
        yield chain
