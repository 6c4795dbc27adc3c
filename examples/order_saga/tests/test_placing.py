"""The web shop: what the demo and the money test publish."""

from itertools import islice

from examples.order_saga import orders as orders_service
from examples.order_saga import placing


def test_the_same_seed_places_the_same_orders() -> None:
    first = list(islice(placing.orders(seed=7), 50))

    assert first == list(islice(placing.orders(seed=7), 50))
    assert first != list(islice(placing.orders(seed=8), 50))


def test_twenty_orders_take_every_road() -> None:
    roads = {order.road for order in islice(placing.orders(seed=3), 20)}

    assert roads == {
        "good",
        "card declined",
        "out of stock",
        "slow carrier",
        "carrier refuses",
        "cancelled halfway",
        "cancelled first",
        "placed twice",
    }


def test_every_order_has_a_number_of_its_own() -> None:
    numbers = [order.order_id for order in islice(placing.orders(seed=1, prefix="today"), 100)]

    assert numbers[0] == "today-0001"
    assert len(set(numbers)) == 100


def test_the_shop_writes_what_orders_reads() -> None:
    for order in islice(placing.orders(seed=1), 20):
        for publication in order.publications:
            reader = getattr(orders_service, type(publication.event).__name__)
            written = publication.event.model_dump_json()

            assert reader.model_validate_json(written).model_dump() == publication.event.model_dump()
