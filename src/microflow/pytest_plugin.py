"""The pytest plugin: a `world` fixture, and async tests that use it, without another plugin.

    async def test_a_paid_order_is_shipped(world):
        shop = await world(orders, payments, shipping, dependencies={Cards: FakeCards()})
        await shop.emit(OrderPlaced(order_id="o-1"))
        await shop.settle()

Nothing of microflow is imported until a test asks for a world: the plugin is loaded in every run of pytest.
"""

from __future__ import annotations

import asyncio
import importlib
import inspect
from contextlib import AsyncExitStack
from typing import Any

import pytest


class Worlds:
    """Makes worlds for a test and closes them, in the loop that the test runs in, when it ends."""

    def __init__(self) -> None:
        self._opened = AsyncExitStack()

    async def __call__(self, *services: Any, **options: Any) -> Any:
        """A `microflow.testing.World` of these services, entered."""
        world = importlib.import_module("microflow.testing").World(*services, **options)
        return await self._opened.enter_async_context(world)

    async def run(self, test: Any, arguments: dict[str, Any]) -> None:
        """Run a test and close what it opened."""
        async with self._opened:
            await test(**arguments)


@pytest.fixture
def world() -> Worlds:
    """Makes worlds: `shop = await world(orders, payments, dependencies={…}, seed=1)`. They end with the test."""
    return Worlds()


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run an async test that uses `world`; every other test is none of our business."""
    worlds = pyfuncitem.funcargs.get("world")
    if not isinstance(worlds, Worlds) or not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    names = pyfuncitem._fixtureinfo.argnames
    asyncio.run(worlds.run(pyfuncitem.obj, {name: pyfuncitem.funcargs[name] for name in names}))
    return True
