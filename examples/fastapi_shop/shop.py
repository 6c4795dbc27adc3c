"""shop: takes orders over HTTP and packs them, in one process.

The endpoint writes an order and announces it in one transaction. The service in the application's lifespan hears of
it right after that, packs it in a transaction of its own, and says so.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

from fastapi import Depends, FastAPI, HTTPException, Request
from pydantic import BaseModel
from sqlalchemy import make_url
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from microflow import Event, Outbox, Service, on, running


class Base(DeclarativeBase):
    pass


class Order(Base):
    __tablename__ = "orders"

    id: Mapped[str] = mapped_column(primary_key=True)
    item: Mapped[str]
    state: Mapped[str] = mapped_column(default="placed")


# ── the service: what happens once an order is placed ─────────────────────────────────────────────────────────────


class OrderPlaced(Event, key="order_id"):
    order_id: str


class OrderPacked(Event, key="order_id"):
    order_id: str


@on(OrderPlaced)
async def pack_order(placed: OrderPlaced, session: AsyncSession) -> OrderPacked:
    order = await session.get_one(Order, placed.order_id)  # the session is in the handler's own transaction
    order.state = "packed"
    return OrderPacked(order_id=order.id)


service = Service("shop", tables="shop.sql")


# ── the web application ───────────────────────────────────────────────────────────────────────────────────────────

DRIVERS = {"sqlite": "sqlite+aiosqlite", "postgresql": "postgresql+asyncpg", "postgres": "postgresql+asyncpg"}

outbox = Outbox("shop")


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    async with running(service) as shop:
        url = make_url(shop.database)
        engine = create_async_engine(url.set(drivername=DRIVERS[url.drivername]))
        app.state.sessions = async_sessionmaker(engine)
        yield
        await engine.dispose()


def sessions(request: Request) -> async_sessionmaker[AsyncSession]:
    made: async_sessionmaker[AsyncSession] = request.app.state.sessions
    return made


Sessions = Annotated[async_sessionmaker[AsyncSession], Depends(sessions)]

app = FastAPI(lifespan=lifespan)


class Wanted(BaseModel):
    item: str


@app.put("/orders/{order_id}", status_code=201)
async def place_order(order_id: str, wanted: Wanted, sessions: Sessions) -> dict[str, str]:
    try:
        async with sessions.begin() as session:
            session.add(Order(id=order_id, item=wanted.item))
            await outbox.append(session, OrderPlaced(order_id=order_id))  # committed together, or neither
    except IntegrityError:
        raise HTTPException(409, f"there is an order {order_id} already") from None
    return {"order_id": order_id, "state": "placed"}


@app.get("/orders/{order_id}")
async def look_up(order_id: str, sessions: Sessions) -> dict[str, str]:
    async with sessions() as session:
        order = await session.get(Order, order_id)
    if order is None:
        raise HTTPException(404, f"there is no order {order_id}")
    return {"order_id": order.id, "item": order.item, "state": order.state}
