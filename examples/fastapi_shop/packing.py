"""packing: packs what is ordered, wherever the order was placed. It has a database of its own."""

from microflow import Context, Event, Service, on


class OrderPlaced(Event):
    order_id: str
    item: str


class OrderPacked(Event, key="order_id"):
    order_id: str


@on("OrderPlaced")
async def pack_order(placed: OrderPlaced, context: Context) -> OrderPacked:
    context.write("insert into parcels (order_id, item) values ($1, $2)", placed.order_id, placed.item)
    return OrderPacked(order_id=placed.order_id)


service = Service("packing", tables="packing.sql")
