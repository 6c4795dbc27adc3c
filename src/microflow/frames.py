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

from microflow.causes import leaves
from microflow.errors import MicroflowError

OURS = f"{Path(__file__).parent}/"
EXAMPLES = f"{OURS}examples/"
PACKAGES = tuple(f"{get_paths()[name]}/" for name in ("purelib", "platlib"))
INSTALLED = tuple(f"{get_paths()[name]}/" for name in ("stdlib", "platstdlib", "purelib", "platlib"))
FRAMEWORKS = frozenset({"uvloop", "pydantic", "click", "pluggy", "_pytest", "pytest"})


def user_frames(error: BaseException) -> list[FrameSummary]:
    """The frames of the user's own files, the innermost last; of a group, those of its first error too.

    Without ours, the standard library's and those of installed packages. If nothing is left, those of installed
    packages, where a service may be, but for the ones that we or asyncio are called through.
    """
    first = next(leaves(error))
    tracebacks = [error.__traceback__] if first is error else [error.__traceback__, first.__traceback__]
    frames = [frame for each in tracebacks for frame in traceback.extract_tb(each)]
    return [frame for frame in frames if _is_users(frame.filename)] or [
        frame for frame in frames if _may_be_users(frame.filename)
    ]


def place_raised(error: BaseException) -> str | None:
    """`file:line` of the innermost frame that is the user's; if it passed none, what it says itself, or None."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}:{error.lineno}"
    frames = user_frames(error)
    if not frames:
        return error.where if isinstance(error, MicroflowError) else None
    return f"{frames[-1].filename}:{frames[-1].lineno}"


def place_waiting(task: asyncio.Task[Any]) -> str | None:
    """`file:line` of the innermost frame of the user's in which a task waits; None if it waits in none."""
    frames = list(_awaited(task.get_coro()))
    users = [frame for frame in frames if _is_users(frame.f_code.co_filename)] or [
        frame for frame in frames if _may_be_users(frame.f_code.co_filename)
    ]
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
    return any(_is_users(frame.filename) for frame in user_frames(error))


def _is_users(filename: str) -> bool:
    return not _is_ours(filename) and not _is_installed(filename)


def _may_be_users(filename: str) -> bool:
    """Whether a service that is installed as a package may be in this file."""
    own_name = next((filename.removeprefix(folder) for folder in PACKAGES if filename.startswith(folder)), None)
    return own_name is not None and not _is_ours(filename) and own_name.partition("/")[0] not in FRAMEWORKS


def _is_ours(filename: str) -> bool:
    # The examples are installed with us, and they are what a user's code looks like.
    return filename.startswith("<frozen ") or (filename.startswith(OURS) and not filename.startswith(EXAMPLES))


def _is_installed(filename: str) -> bool:
    # What is compiled names its source as it was where it was compiled: uvloop/loop.pyx.
    return filename.startswith(INSTALLED) or filename.endswith((".pyx", ".pxd", ".pxi"))
