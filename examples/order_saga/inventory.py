"""inventory: reserves what was paid for, and puts it back on the shelf when it is not delivered.

Payments and refunds share a topic, so for one order the refund is always read after the payment. A release therefore
never has to wonder whether a reservation is still to come.
"""

from microflow import Connection, Event, Service, on

# ── what this service reads ───────────────────────────────────────────────────────────────────────────────────────


class PaymentReceived(Event, topic="payments"):
    order_id: str
    items: dict[str, int]


class PaymentRefunded(Event, topic="payments"):
    order_id: str


# ── what it emits ─────────────────────────────────────────────────────────────────────────────────────────────────


class InventoryEvent(Event, key="order_id", topic="inventory"):
    order_id: str


class ItemsReserved(InventoryEvent):
    items: dict[str, int]


class ItemsOutOfStock(InventoryEvent):
    reason: str


class ItemsReleased(InventoryEvent):
    pass


# ── the handlers ──────────────────────────────────────────────────────────────────────────────────────────────────


@on("PaymentReceived")
async def reserve_items(order: PaymentReceived, connection: Connection) -> ItemsReserved | ItemsOutOfStock:
    """An order that is paid for gets all of its items or, if one is missing, none."""
    try:
        async with connection.savepoint():
            for item in sorted(order.items):  # in one order everywhere, so that two orders never wait for each other
                await take_from_shelf(connection, order.order_id, item, order.items[item])
    except OutOfStock as missing:
        return ItemsOutOfStock(order_id=order.order_id, reason=str(missing))
    return ItemsReserved(order_id=order.order_id, items=order.items)


@on("PaymentRefunded")
async def release_items(order: PaymentRefunded, connection: Connection) -> ItemsReleased | None:
    """What the customer has the money back for goes back on the shelf."""
    reserved = await connection.fetch(
        "select item, quantity from reservations where order_id = $1 and state = 'reserved' order by item",
        order.order_id,
    )
    for row in reserved:
        sql = "update stock set available = available + $2 where item = $1"
        await connection.execute(sql, row["item"], row["quantity"])
    await connection.execute("update reservations set state = 'released' where order_id = $1", order.order_id)
    return ItemsReleased(order_id=order.order_id) if reserved else None


# ── the shelf ─────────────────────────────────────────────────────────────────────────────────────────────────────


class OutOfStock(Exception):
    """There is not enough of an item; the savepoint gives back what was taken before it."""


async def take_from_shelf(connection: Connection, order_id: str, item: str, quantity: int) -> None:
    sql = "update stock set available = available - $2 where item = $1 and available >= $2"
    if not await connection.execute(sql, item, quantity):
        raise OutOfStock(f"{item} is out of stock")
    sql = "insert into reservations (order_id, item, quantity, state) values ($1, $2, $3, 'reserved')"
    await connection.execute(sql, order_id, item, quantity)


service = Service("inventory", tables="inventory.sql")
