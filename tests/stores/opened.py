"""A SQLite store for one test."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

from microflow.clocks import SystemClock
from microflow.stores.sqlite import SqliteStore


@contextlib.asynccontextmanager
async def opened(path: Path, *, service: str = "payments", memory: bool = False) -> AsyncIterator[SqliteStore]:
    store = await SqliteStore.open(path, service=service, clock=SystemClock(), memory=memory)
    try:
        yield store
    finally:
        await store.close()
