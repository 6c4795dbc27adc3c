"""Whose line it was: of an error's frames, those that its user wrote."""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import Iterator
from pathlib import Path
from sysconfig import get_paths
from traceback import FrameSummary
from types import FrameType
from typing import Any

OURS = f"{Path(__file__).parent}/"
EXAMPLES = f"{OURS}examples/"
INSTALLED = tuple(f"{get_paths()[name]}/" for name in ("stdlib", "platstdlib", "purelib", "platlib"))


def user_frames(error: BaseException) -> list[FrameSummary]:
    """The frames of the user's own files, the innermost last.

    Without ours, the standard library's and those of installed packages; if nothing is left, only without ours.
    """
    foreign = [frame for frame in traceback.extract_tb(error.__traceback__) if not _is_ours(frame.filename)]
    return [frame for frame in foreign if not _is_installed(frame.filename)] or foreign


def place_raised(error: BaseException) -> str | None:
    """`file:line` of the innermost frame that is the user's; None if an error never passed one."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}:{error.lineno}"
    frames = user_frames(error)
    return f"{frames[-1].filename}:{frames[-1].lineno}" if frames else None


def place_waiting(task: asyncio.Task[Any]) -> str | None:
    """`file:line` of the innermost frame of the user's in which a task waits; None if it waits in none."""
    frames = [frame for frame in _awaited(task.get_coro()) if not _is_ours(frame.f_code.co_filename)]
    users = [frame for frame in frames if not _is_installed(frame.f_code.co_filename)] or frames
    return f"{users[-1].f_code.co_filename}:{users[-1].f_lineno}" if users else None


def _awaited(waiting: Any) -> Iterator[FrameType]:
    # A task's own stack is its outermost coroutine alone while it waits.
    while waiting is not None:
        kind = next((kind for kind in ("cr", "gi", "ag") if hasattr(waiting, f"{kind}_frame")), None)
        if kind is None:
            return
        if (frame := getattr(waiting, f"{kind}_frame")) is not None:
            yield frame
        waiting = getattr(waiting, "gi_yieldfrom" if kind == "gi" else f"{kind}_await")


def is_users_fault(error: BaseException) -> bool:
    """Whether an error passed through a file of the user's, so that it is theirs to mend."""
    frames = traceback.extract_tb(error.__traceback__)
    return any(not _is_ours(frame.filename) and not _is_installed(frame.filename) for frame in frames)


def _is_ours(filename: str) -> bool:
    # The examples are installed with us, and they are what a user's code looks like.
    return filename.startswith("<frozen ") or (filename.startswith(OURS) and not filename.startswith(EXAMPLES))


def _is_installed(filename: str) -> bool:
    return filename.startswith(INSTALLED)
