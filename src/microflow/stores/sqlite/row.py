"""A row of a result: by column name and by position, as asyncpg's records are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any


class Row(Mapping[str, Any]):
    """A mapping from column name to value that can be indexed by position too.

    Iterating and unpacking give the values, as with the records of asyncpg and of sqlite3; `in`, `get`, `keys`,
    `items` and `dict(row)` go by name.
    """

    __slots__ = ("_columns", "_values")

    def __init__(self, columns: Mapping[str, int], values: Sequence[Any]) -> None:
        self._columns = columns
        self._values = values

    def __getitem__(self, key: str | int | slice) -> Any:
        return self._values[self._columns[key] if isinstance(key, str) else key]

    def __iter__(self) -> Iterator[Any]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __contains__(self, name: object) -> bool:
        return name in self._columns

    def get(self, name: str, default: Any = None) -> Any:
        return self._values[self._columns[name]] if name in self._columns else default

    def keys(self) -> Any:
        return self._columns.keys()

    def values(self) -> Any:
        return tuple(self._values)

    def items(self) -> Any:
        return dict(self._pairs()).items()

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Row):
            return dict(self._pairs()) == dict(other._pairs())
        return dict(self._pairs()) == other if isinstance(other, Mapping) else NotImplemented

    __hash__ = None  # type: ignore[assignment]  # a row may hold a dict, so it has no hash, like other mappings

    def __repr__(self) -> str:
        return f"<Row {' '.join(f'{name}={value!r}' for name, value in self._pairs())}>"

    def _pairs(self) -> Iterator[tuple[str, Any]]:
        return ((name, self._values[position]) for name, position in self._columns.items())
