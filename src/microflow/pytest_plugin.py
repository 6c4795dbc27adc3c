"""The pytest plugin: a `world` fixture, and async tests that use it, without another plugin.

    async def test_a_paid_order_is_shipped(world: Worlds) -> None:
        shop = await world(orders, payments, shipping, dependencies={Cards: FakeCards()})
        await shop.emit(OrderPlaced(order_id="o-1"))
        await shop.settle()

Nothing of microflow is imported until a test asks for a world: the plugin is loaded in every run of pytest.
"""

from __future__ import annotations

import asyncio
import importlib
import inspect
import sys
from typing import Any

import pytest


@pytest.fixture
def world() -> Any:
    """Makes worlds: `shop = await world(orders, payments, dependencies={…}, seed=1)`. They end with the test.

    Its type is `microflow.testing.Worlds`.
    """
    return importlib.import_module("microflow.testing").Worlds()


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run an async test that uses `world`; every other test is none of our business."""
    testing = sys.modules.get("microflow.testing")  # imported by now if the test uses the fixture
    worlds = pyfuncitem.funcargs.get("world")
    if testing is None or not isinstance(worlds, testing.Worlds) or not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    names = pyfuncitem._fixtureinfo.argnames
    asyncio.run(worlds.run(pyfuncitem.obj, {name: pyfuncitem.funcargs[name] for name in names}))
    return True
