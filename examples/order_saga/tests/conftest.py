"""`start`: the five services in a world of their own, with a card company and a carrier to be hard on them."""

from collections.abc import Iterator, Mapping
from typing import Protocol

import pytest

from examples.order_saga import customers, inventory, orders, payments, shipping
from examples.order_saga.payments import CardCompany, Cards
from examples.order_saga.shipping import Carrier, ParcelCarrier
from examples.order_saga.tests.saga import Saga
from microflow.testing import Worlds


class Start(Protocol):
    """Start a saga. `lost_answers` is a share of the card company's; `shelf` replaces what is in stock of an item."""

    async def __call__(
        self,
        *,
        seed: int = 1,
        lost_answers: float = 0.0,
        carrier: Carrier | None = None,
        shelf: Mapping[str, int] | None = None,
    ) -> Saga: ...


@pytest.fixture
def start(world: Worlds) -> Iterator[Start]:
    companies: list[CardCompany] = []

    async def start_saga(
        *,
        seed: int = 1,
        lost_answers: float = 0.0,
        carrier: Carrier | None = None,
        shelf: Mapping[str, int] | None = None,
    ) -> Saga:
        company = CardCompany(":memory:", lost=lost_answers)
        companies.append(company)
        dependencies = {Cards: company, Carrier: carrier or ParcelCarrier()}
        services = (orders, payments, inventory, shipping, customers)
        new_world = await world(*services, dependencies=dependencies, seed=seed)
        stock = new_world.connection("inventory")
        for item, available in (shelf or {}).items():
            await stock.execute("update stock set available = $2 where item = $1", item, available)
        rows = await stock.fetch("select item, available from stock")
        return Saga(new_world, company, {row["item"]: row["available"] for row in rows})

    yield start_saga
    for company in companies:
        company.close()
