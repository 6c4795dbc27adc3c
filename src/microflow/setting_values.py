"""The values of settings, as people write them: a text, a number, a span of time, one of several words.

Each reader is given what was written, by a flag, a variable or a file, and the place where it was written. It raises
SettingsError for what it cannot read.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeAlias

from microflow.errors import SettingsError, nearest

Reader: TypeAlias = Callable[[Any, str], Any]

_SPAN = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|d)?")
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}


def text(value: Any, where: str) -> str:
    """A text."""
    if isinstance(value, str):
        return value
    raise SettingsError(f"{where} is {value!r}, and a text is expected.", fix=f'"{value}"')


def span(value: Any, where: str) -> timedelta:
    """`25s`, `500ms`, `2m`, `1h` or `7d`; of nothing but nothing the unit can be left out."""
    match = _SPAN.fullmatch(str(value).strip()) if isinstance(value, str | int | float) else None
    if match is None or isinstance(value, bool):
        raise SettingsError(f"{where}: {value!r} is no span of time.", fix="For example 25s, 500ms or 2m.")
    if match[2] is None and float(match[1]) != 0:
        raise SettingsError(f"{where}: {value} of what? A span of time has a unit.", fix=f"{value}s, or {value}ms, …")
    try:
        return timedelta(seconds=float(match[1]) * _UNITS.get(match[2], 0))
    except OverflowError:
        raise SettingsError(f"{where}: {value} is longer than anything lasts.") from None


def at_least(least: timedelta, read: Reader, *, otherwise: str) -> Reader:
    """A span of time that is not shorter than `least`; `otherwise` says what would come of one that is."""

    def read_it(value: Any, where: str) -> timedelta:
        found: timedelta = read(value, where)
        if found >= least:
            return found
        raise SettingsError(
            f"{where}: {value!r} is too short.", why=otherwise, fix=f"{least.total_seconds():.0f}s or more."
        )

    return read_it


def count(value: Any, where: str) -> int:
    """A whole number from 1 on."""
    written = str(value)
    if isinstance(value, bool) or not written.isdecimal() or int(written) < 1:
        raise SettingsError(f"{where}: {value!r} is no positive number.")
    return int(written)


def one_of(*words: str) -> Reader:
    """One of these words."""

    def read(value: Any, where: str) -> str:
        if isinstance(value, str) and value.lower() in words:
            return value.lower()
        near = nearest(str(value), words)
        raise SettingsError(
            f"{where}: {value!r} is none of {', '.join(words)}.", fix=f"Did you mean {near}?" if near else None
        )

    return read


def retention(value: Any, where: str) -> timedelta:
    """A span of time, or `forever`, which is `timedelta.max`."""
    return timedelta.max if value == "forever" else span(value, where)
