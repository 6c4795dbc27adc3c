"""A service's own tables, read and changed by a test."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from microflow.ports import Row, Store


class WorldConnection:
    """A service's own tables, read or changed by a test. Each call is a transaction of its own."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def fetch(self, sql: str, *args: object) -> Sequence[Row]:
        async with self._store.transaction() as transaction:
            return await transaction.connection.fetch(sql, *args)

    async def fetchrow(self, sql: str, *args: object) -> Row | None:
        async with self._store.transaction() as transaction:
            return await transaction.connection.fetchrow(sql, *args)

    async def fetchval(self, sql: str, *args: object) -> Any:
        async with self._store.transaction() as transaction:
            return await transaction.connection.fetchval(sql, *args)

    async def execute(self, sql: str, *args: object) -> int:
        async with self._store.transaction() as transaction:
            return await transaction.connection.execute(sql, *args)
