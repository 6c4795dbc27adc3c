"""A finding: what a probe saw, how bad it is, and what to type."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from microflow.errors import MicroflowError

Level: TypeAlias = Literal["ok", "warning", "problem"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report. `fix` is a command to paste, or the line to change."""

    level: Level
    text: str
    fix: str | None = None


Probe: TypeAlias = Callable[[], Awaitable[Sequence[Finding]]]
"""Looks at one subject. What it raises becomes a problem; what takes longer than it may, too."""


def ok(*parts: str) -> Finding:
    """All is well: the facts, one beside the other."""
    return Finding("ok", " · ".join(part for part in parts if part))


def warning(text: str, fix: str | None = None) -> Finding:
    """It works, and will not always."""
    return Finding("warning", text, fix)


def problem(text: str, fix: str | None = None) -> Finding:
    """It does not work, or events would be lost, held up or out of order."""
    return Finding("problem", text, fix)


def problem_of(error: MicroflowError, *, of: str | None = None) -> Finding:
    """An error as a finding, of a service if it is named: in one line, with its own way out."""
    whose = f"{of}: " if of is not None else ""
    where = f"{error.where}  " if error.where else ""
    why = f" ({' '.join(error.why.split())})" if error.why else ""
    return problem(f"{whose}{where}{error.what}{why}", error.fix)
