"""What microflow's loggers say while a test listens."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import pytest


@contextmanager
def telling(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Listen while the block runs, from INFO upwards."""
    logger = logging.getLogger("microflow")
    before = logger.level
    logger.setLevel(logging.INFO)
    try:
        with caplog.at_level(logging.INFO):
            yield
    finally:
        logger.setLevel(before)


def told(caplog: pytest.LogCaptureFixture, text: str) -> list[str]:
    """What was said with this text in it."""
    return [record.getMessage() for record in caplog.records if text in record.getMessage()]
