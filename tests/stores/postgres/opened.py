"""A PostgreSQL store for one test."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any

import asyncpg

from microflow.clocks import SystemClock
from microflow.stores.postgres import PostgresStore


@contextlib.asynccontextmanager
async def opened(url: str, *, service: str = "payments", lanes: int = 2) -> AsyncIterator[PostgresStore]:
    store = await PostgresStore.open(url, service=service, clock=SystemClock(), lanes=lanes)
    try:
        yield store
    finally:
        await store.close()


@contextlib.asynccontextmanager
async def connected(url: str) -> AsyncIterator[Any]:
    """Somebody else's connection to the same database."""
    connection = await asyncpg.connect(url)
    try:
        yield connection
    finally:
        await connection.close()
