"""customers: tells customers what becomes of their orders.

It decides nothing and emits nothing. The events of an order share a topic, so the letters are written in the order in
which things happened.
"""

from microflow import Context, Event, Service, on


class OrderEvent(Event, topic="orders"):
    order_id: str


class OrderAccepted(OrderEvent):
    pass


class OrderCompleted(OrderEvent):
    pass


class OrderRejected(OrderEvent):
    reason: str


class OrderCancelled(OrderEvent):
    reason: str


class OrderCancellationRefused(OrderEvent):
    reason: str


@on("OrderAccepted")
async def confirm_order(order: OrderAccepted, context: Context) -> None:
    """Thank you: your order is accepted."""
    write_letter(context, order, "Thank you, your order is accepted.")


@on("OrderCompleted")
async def announce_parcel(order: OrderCompleted, context: Context) -> None:
    """Good news: your parcel is on its way."""
    write_letter(context, order, "Your parcel is on its way.")


@on("OrderRejected")
async def apologise(order: OrderRejected, context: Context) -> None:
    """Bad news: your order cannot be carried out."""
    write_letter(context, order, f"Your order cannot be carried out: {order.reason}.")


@on("OrderCancelled")
async def confirm_cancellation(order: OrderCancelled, context: Context) -> None:
    """As you wished, or to our regret: your order is cancelled, and costs you nothing."""
    write_letter(context, order, f"Your order is cancelled: {order.reason}. It costs you nothing.")


@on("OrderCancellationRefused")
async def explain_refusal(order: OrderCancellationRefused, context: Context) -> None:
    """It is too late to cancel."""
    write_letter(context, order, f"Your order cannot be cancelled any more: {order.reason}.")


def write_letter(context: Context, order: OrderEvent, text: str) -> None:
    context.write("insert into letters (order_id, letter) values ($1, $2)", order.order_id, text)


service = Service("customers", tables="customers.sql")
