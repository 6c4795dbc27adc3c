"""The web shop and its customers: random orders, as they would be published to the services.

    for order in orders(seed=1):                 # endless; the same orders for the same seed
        for publication in order.publications:   # the first ones at once, a cancellation a moment later
            …publish publication.event, `publication.after` the order began, with order.order_id as correlation id

An order has ended when an event whose type is in `ENDS` appears in its flow; every order ends exactly once.
`order.ending` says how, where the customer leaves no doubt. Every twenty orders take every road at least once.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from decimal import Decimal
from random import Random

from microflow import Event

ENDS = frozenset({"OrderCompleted", "OrderCancelled", "OrderRejected"})


class OrderPlaced(Event, key="order_id"):
    order_id: str
    items: dict[str, int]
    total: Decimal
    card: str


class OrderCancellationRequested(Event, key="order_id"):
    order_id: str


@dataclass(frozen=True)
class Publication:
    """An event that the web shop publishes, a moment after the order began."""

    event: OrderPlaced | OrderCancellationRequested
    after: timedelta = timedelta(0)


@dataclass(frozen=True)
class Order:
    """What one customer does. `road` says it in words; `ending` is None where it depends on who is quicker."""

    order_id: str
    road: str
    ending: str | None
    publications: tuple[Publication, ...]


def orders(seed: int, *, prefix: str = "order") -> Iterator[Order]:
    """Orders without end: most are good, and in every twenty each thing that can happen to an order happens."""
    random = Random(seed)
    number = 0
    while True:
        for road in random.sample(ROADS, len(ROADS)):
            number += 1
            yield road(f"{prefix}-{number:04}", random)


# ── the roads ─────────────────────────────────────────────────────────────────────────────────────────────────────

PRICES: Mapping[str, Decimal] = {
    "teapot": Decimal("24.90"),
    "cup": Decimal("7.50"),
    "antique clock": Decimal("310.00"),
    "grand piano": Decimal("980.00"),
    "unicorn": Decimal("0.99"),
}


def good(order_id: str, random: Random) -> Order:
    return Order(order_id, "good", "OrderCompleted", (Publication(placed(order_id, random)),))


def card_declined(order_id: str, random: Random) -> Order:
    event = placed(order_id, random, card="4000-declined")
    return Order(order_id, "card declined", "OrderRejected", (Publication(event),))


def out_of_stock(order_id: str, random: Random) -> Order:
    return Order(order_id, "out of stock", "OrderCancelled", (Publication(placed(order_id, random, wish="unicorn")),))


def slow_carrier(order_id: str, random: Random) -> Order:
    event = placed(order_id, random, wish="antique clock")
    return Order(order_id, "slow carrier", "OrderCompleted", (Publication(event),))


def carrier_refuses(order_id: str, random: Random) -> Order:
    event = placed(order_id, random, wish="grand piano")
    return Order(order_id, "carrier refuses", "OrderCancelled", (Publication(event),))


def cancelled_halfway(order_id: str, random: Random) -> Order:
    cancellation = Publication(cancelled(order_id), after=moment(random))
    return Order(order_id, "cancelled halfway", None, (Publication(placed(order_id, random)), cancellation))


def cancelled_first(order_id: str, random: Random) -> Order:
    placing = Publication(placed(order_id, random), after=moment(random))
    return Order(order_id, "cancelled first", None, (Publication(cancelled(order_id)), placing))


def placed_twice(order_id: str, random: Random) -> Order:
    event = placed(order_id, random)
    again = Publication(event, after=moment(random))
    return Order(order_id, "placed twice", "OrderCompleted", (Publication(event), again))


ROADS: tuple[Callable[[str, Random], Order], ...] = (
    *(good,) * 9,
    *(card_declined,) * 2,
    *(out_of_stock,) * 2,
    *(slow_carrier,) * 2,
    carrier_refuses,
    *(cancelled_halfway,) * 2,
    cancelled_first,
    placed_twice,
)


def placed(order_id: str, random: Random, *, wish: str | None = None, card: str = "4000-good") -> OrderPlaced:
    items = {random.choice(["teapot", "cup"]): random.randint(1, 4)}
    if wish is not None:
        items[wish] = 1
    total = sum((PRICES[item] * quantity for item, quantity in items.items()), Decimal(0))
    return OrderPlaced(order_id=order_id, items=items, total=total, card=card)


def cancelled(order_id: str) -> OrderCancellationRequested:
    return OrderCancellationRequested(order_id=order_id)


def moment(random: Random) -> timedelta:
    return timedelta(milliseconds=random.randint(1, 200))
