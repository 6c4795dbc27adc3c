"""Tests that wait: for a loop of their own, and for what happens a moment later."""

import asyncio
import functools
from collections.abc import Awaitable, Callable, Coroutine
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")
PATIENCE = 60.0


def asynchronous(test: Callable[P, Coroutine[None, None, T]]) -> Callable[P, T]:
    """Run an `async def` test to its end."""

    @functools.wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        return asyncio.run(test(*args, **kwargs))

    return run


async def until(condition: Callable[[], Awaitable[object]]) -> None:
    """Return as soon as it is so, or fail."""
    async with asyncio.timeout(PATIENCE):
        while not await condition():  # noqa: ASYNC110 - of another program, too, so nobody can tell
            await asyncio.sleep(0.01)
