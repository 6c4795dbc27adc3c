"""Places in the user's code, as `file:line`: every misuse is told where it was written."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from typing import Any

# Whose frames stand between a line of the user's and us: our own rooms by name, because a user's package may well be
# called microflow.something, and what builds classes.
OURS = frozenset(
    {"microflow.places", "microflow.events", "microflow.handlers", "microflow.service", "microflow.retries"}
)
BUILDERS = frozenset({"pydantic", "abc", "types", "typing", "dataclasses", "functools"})


def calling_place() -> str:
    """The line of the user's that, through our own code and pydantic's, called here."""
    frame = sys._getframe(1)
    while frame.f_back is not None and _is_between(frame.f_globals.get("__name__", "")):
        frame = frame.f_back
    return f"{frame.f_code.co_filename}:{frame.f_lineno}"


def _is_between(module: str) -> bool:
    return module in OURS or module.partition(".")[0] in BUILDERS


def place_of(function: Callable[..., Any]) -> str:
    """Where a function is written; for a wrapped one, the function that is inside."""
    code = getattr(inspect.unwrap(function), "__code__", None) or getattr(function, "__code__", None)
    return f"{code.co_filename}:{code.co_firstlineno}" if code is not None else repr(function)
