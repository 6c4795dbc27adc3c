"""storefront: takes orders over HTTP, and knows nobody who handles them.

It is no service: it appends to the outbox of its own database and goes on. `microflow relay` publishes from there.
"""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, HTTPException
from pydantic import BaseModel
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from microflow import Event, Outbox


class Base(DeclarativeBase):
    pass


class Order(Base):
    __tablename__ = "orders"

    id: Mapped[str] = mapped_column(primary_key=True)
    item: Mapped[str]


class OrderPlaced(Event, key="order_id"):
    order_id: str
    item: str


engine = create_async_engine(os.environ.get("STOREFRONT_DATABASE", "sqlite+aiosqlite:///storefront.db"))
outbox = Outbox("storefront")


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    yield
    await engine.dispose()


app = FastAPI(lifespan=lifespan)


class Wanted(BaseModel):
    item: str


@app.put("/orders/{order_id}", status_code=201)
async def place_order(order_id: str, wanted: Wanted) -> dict[str, str]:
    try:
        async with AsyncSession(engine) as session, session.begin():
            session.add(Order(id=order_id, item=wanted.item))
            await outbox.append(session, OrderPlaced(order_id=order_id, item=wanted.item))
    except IntegrityError:
        raise HTTPException(409, f"there is an order {order_id} already") from None
    return {"order_id": order_id}
