"""The transaction's connection, as a handler sees it: the same verbs, values and errors on every store."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol, TypeAlias

Row: TypeAlias = Mapping[str, Any]


class Connection(Protocol):
    """The transaction's connection as a handler sees it: asyncpg's verbs and `$1` placeholders on every store.

    `str int bool float bytes Decimal datetime date UUID` and JSON values (dict, list) go in as parameters and come
    back from columns selected by name, alike on every store. Errors are those of `microflow.errors`. An error that
    is not caught around a `savepoint()` fails the handler, even if the handler goes on. `commit` and `rollback`
    belong to the runtime and raise.
    """

    async def execute(self, sql: str, *args: object) -> int:
        """Run one statement; return how many rows it affected."""
        ...

    async def executemany(self, sql: str, rows: Sequence[Sequence[object]]) -> None: ...

    async def fetch(self, sql: str, *args: object) -> Sequence[Row]:
        """All rows, each a mapping from column name to value that can be indexed by position as well."""
        ...

    async def fetchrow(self, sql: str, *args: object) -> Row | None: ...

    async def fetchval(self, sql: str, *args: object) -> Any:
        """The first column of the first row, or None."""
        ...

    def savepoint(self) -> AbstractAsyncContextManager[None]:
        """What is done inside is undone if it raises; afterwards the transaction is usable."""
        ...

    @property
    def raw(self) -> Any:
        """The driver's own connection."""
        ...
