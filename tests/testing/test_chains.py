"""Events that go round in a circle end a test with their names, not with its patience."""

from __future__ import annotations

import pytest

from microflow.errors import MicroflowError
from microflow.events import Event
from microflow.handlers import on
from microflow.testing import Worlds
from tests.testing.shops import shop_of


class Asked(Event, key="number"):
    number: str
    left: int = 1_000_000_000


class Answered(Event, key="number"):
    number: str
    left: int


@on("Asked")
async def answer(question: Asked) -> Answered | None:
    return Answered(number=question.number, left=question.left - 1) if question.left else None


@on("Answered")
async def ask_again(answered: Answered) -> Asked:
    return Asked(number=answered.number, left=answered.left)


async def test_a_circle_is_told_with_its_handlers_in_order(world: Worlds) -> None:
    shop = await world(shop_of(answer, name="desk"), shop_of(ask_again, name="guest"), longest_chain=20)
    await shop.emit(Asked(number="1"))

    with pytest.raises(MicroflowError) as refusal:
        await shop.settle()

    names = refusal.value.what.removeprefix("Events go round in a circle: ").removesuffix(".").split(" → ")
    assert names in (
        ["desk.answer", "guest.ask_again", "desk.answer"],
        ["guest.ask_again", "desk.answer", "guest.ask_again"],
    )
    assert refusal.value.where
    assert f"{__file__}:" in refusal.value.where


async def test_a_chain_that_ends_may_be_as_long_as_that_in_every_settle(world: Worlds) -> None:
    shop = await world(shop_of(answer, name="desk"), shop_of(ask_again, name="guest"), longest_chain=20)

    for number in "12":
        await shop.emit(Asked(number=number, left=10), correlation_id="one flow")
        await shop.settle()

    assert len(shop.events(type="Answered", flow="one flow")) == 20
