"""A start that fails halfway leaves nothing behind in a process that goes on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from microflow import Event, Service, on, running
from microflow.errors import DefinitionError
from microflow.settings import Settings
from tests.asynchronous import asynchronous


class OrderAccepted(Event):
    order_id: str


class Cards:
    pass


@on("OrderAccepted")
async def take_payment(order: OrderAccepted, cards: Cards) -> None:
    """Asks for what the lifespan below does not provide."""


@asynchronous
async def test_the_lifespan_is_left_when_a_handler_asks_for_what_nobody_provides(tmp_path: Path) -> None:
    steps: list[str] = []

    @asynccontextmanager
    async def nothing() -> AsyncIterator[Mapping[Any, Any]]:
        steps.append("entered")
        yield {}
        steps.append("left")

    settings = Settings(home=tmp_path, kafka=f"local:{tmp_path}/log.db")
    before = len(asyncio.all_tasks())

    with pytest.raises(DefinitionError, match="nobody provides it"):
        async with running(Service("payments", lifespan=nothing), settings=settings):
            steps.append("ran")

    assert steps == ["entered", "left"]
    assert len(asyncio.all_tasks()) == before
