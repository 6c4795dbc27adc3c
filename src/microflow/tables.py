"""A service's own tables: its files of SQL, as the migrations that its store runs once."""

from __future__ import annotations

from pathlib import Path

from microflow.errors import DefinitionError
from microflow.ports import Migration

DIALECTS = ("sqlite", "postgres")


def read_migrations(tables: Path | None, *, dialect: str) -> list[Migration]:
    """The migrations in a file, or in a folder in the order of their names; none without tables.

    `x.sqlite.sql` and `x.postgres.sql` stand for `x.sql` where dialects differ; only the dialect's own is read.
    Raises DefinitionError for a folder without SQL and for a file that cannot be read.
    """
    if tables is None:
        return []
    files = sorted(tables.glob("*.sql")) if tables.is_dir() else _variant(tables, dialect)
    chosen: dict[str, Path] = {}
    for path in files:
        stem, of_dialect = _split(path)
        if of_dialect == dialect or (of_dialect is None and stem not in chosen):
            chosen[stem] = path
    if not chosen:
        raise DefinitionError(f"{tables} holds no SQL for {dialect}.", fix="Name the files 001_orders.sql, 002_….sql")
    return [_migration(stem, path) for stem, path in sorted(chosen.items())]


def _variant(path: Path, dialect: str) -> list[Path]:
    variant = path.with_suffix(f".{dialect}.sql")
    return [variant] if variant.exists() else [path]


def _split(path: Path) -> tuple[str, str | None]:
    stem, _, last = path.stem.rpartition(".")
    return (stem, last) if last in DIALECTS and stem else (path.stem, None)


def _migration(name: str, path: Path) -> Migration:
    try:
        return Migration(name=name, sql=path.read_text(encoding="utf-8"), where=str(path))
    except (OSError, UnicodeDecodeError) as cause:
        raise DefinitionError(f"{path} cannot be read: {cause}.") from cause
