"""A file of SQL as its statements, so that a whole file runs in one transaction (`executescript` would commit)."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterator

_NOTHING = re.compile(r"(?:\s|--[^\n]*(?:\n|$)|/\*.*?\*/|;)*", re.DOTALL)


def split(script: str) -> Iterator[tuple[int, str]]:
    """Each statement, with the number of the line on which it begins. The last one need not end with a semicolon."""
    start = _NOTHING.match(script).end()  # type: ignore[union-attr]  # it matches the empty string too
    end = start
    while start < len(script):
        end = script.find(";", end) + 1 or len(script)
        statement = script[start:end]
        if end == len(script) or sqlite3.complete_statement(statement):
            yield script.count("\n", 0, start) + 1, statement
            start = end = end + _NOTHING.match(script[end:]).end()  # type: ignore[union-attr]
