"""SQL that stands in files beside the code, each statement under its name."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

MARK = "-- name:"


def statements(path: Path) -> Mapping[str, str]:
    """The statements of a file, by what follows `-- name:` on the line above each."""
    found: dict[str, str] = {}
    for part in path.read_text(encoding="utf-8").split(MARK)[1:]:
        name, _, sql = part.partition("\n")
        found[name.strip()] = sql.strip().removesuffix(";")
    return found
