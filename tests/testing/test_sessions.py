"""A handler that asks for a session of SQLAlchemy, in a world and in a test that calls it."""

from __future__ import annotations

import sys
from pathlib import Path

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from microflow.events import Event
from microflow.handlers import on
from microflow.testing import Worlds
from tests.asynchronous import asynchronous


class Base(DeclarativeBase):
    pass


class Order(Base):
    __tablename__ = "orders"

    id: Mapped[str] = mapped_column(primary_key=True)
    state: Mapped[str]


class OrderPlaced(Event, key="order_id"):
    order_id: str


class OrderAccepted(Event, key="order_id"):
    order_id: str


@on("OrderPlaced")
async def accept_order(order: OrderPlaced, session: AsyncSession) -> OrderAccepted:
    row = await session.get(Order, order.order_id) or Order(id=order.order_id)
    row.state = "accepted"
    session.add(row)
    return OrderAccepted(order_id=order.order_id)


async def test_a_world_gives_a_handler_its_session(world: Worlds) -> None:
    shop = await world(sys.modules[__name__])
    await shop.connection("test_sessions").execute("create table orders (id text primary key, state text)")

    await shop.emit(OrderPlaced(order_id="o-1"))
    await shop.settle()

    rows = await shop.connection("test_sessions").fetch("select id, state from orders")
    assert [tuple(row) for row in rows] == [("o-1", "accepted")]
    assert [event.type for event in shop.events()] == ["OrderPlaced", "OrderAccepted"]


@asynchronous
async def test_a_unit_test_calls_it_with_any_session(tmp_path: Path) -> None:
    engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path / 'orders.db'}")
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    async with AsyncSession(engine) as session:
        emitted = await accept_order(OrderPlaced(order_id="o-1"), session)

        assert emitted == OrderAccepted(order_id="o-1")
        assert await session.scalar(select(Order.state)) == "accepted"
    await engine.dispose()
