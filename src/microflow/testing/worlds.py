"""The `world` fixture: worlds that end with their test."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from datetime import datetime
from types import ModuleType
from typing import Any

from microflow.limits import Limits
from microflow.service import Service
from microflow.testing.world import World
from microflow.virtual_time import START


class Worlds:
    """Makes worlds for a test and closes them, in the loop that the test runs in, when it ends."""

    def __init__(self) -> None:
        self._opened = AsyncExitStack()

    async def __call__(
        self,
        *services: ModuleType | Service,
        dependencies: Mapping[Any, Any] | None = None,
        seed: int = 0,
        start: datetime = START,
        topics: Mapping[str, str] | None = None,
        limits: Limits | None = None,
        longest_chain: int = 1000,
    ) -> World:
        """A `World` of these services, entered. The arguments are those of `World`."""
        __tracebackhide__ = True
        world = World(
            *services,
            dependencies=dependencies,
            seed=seed,
            start=start,
            topics=topics,
            limits=limits,
            longest_chain=longest_chain,
        )
        return await self._opened.enter_async_context(world)

    async def run(self, test: Callable[..., Awaitable[None]], arguments: Mapping[str, Any]) -> None:
        """Run a test and close what it opened."""
        __tracebackhide__ = True
        async with self._opened:
            await test(**arguments)
