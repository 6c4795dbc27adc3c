"""Which handlers a service has."""

from __future__ import annotations

from collections.abc import Collection

from microflow.embedded.database import Database
from microflow.stores.sqlite.names import HANDLERS as SQL
from microflow.stores.sqlite.names import Names


class SqliteHandlers:
    """`microflow.ports.Handlers`."""

    def __init__(self, database: Database, names: Names) -> None:
        self._database = database
        self._names = names

    async def register(self, names: Collection[str]) -> frozenset[str]:
        service = self._names.service
        async with self._database.writing() as connection:
            connection.executemany(SQL["register"], [(service, name) for name in sorted(names)])
            remembered = frozenset(name for (name,) in connection.execute(SQL["registered"], (service,)))
        return remembered - frozenset(names)
