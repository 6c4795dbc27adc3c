"""Addresses: whatever is shown, the password is not in it."""

from __future__ import annotations

from typing import cast

import pytest

from microflow import Event, Service, on
from microflow.addresses import masked, masked_in
from microflow.hosting import Running
from microflow.service import build
from microflow.worker import Worker


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("postgresql://shop:hunter2@db:5432/shop", "postgresql://shop:…@db:5432/shop"),
        ("postgresql://shop@db/shop", "postgresql://shop@db/shop"),
        ("postgresql://shop:hun@ter2@db/shop", "postgresql://shop:…@db/shop"),
        ("postgresql://shop:hun/ter2?@db/shop", "postgresql://shop:…@db/shop"),
        ("postgresql://db/shop?user=a&password=hunter2&ssl=require", "postgresql://db/shop?user=a&password=…&ssl=require"),
        ("postgresql:///shop?sslpassword=hunter2", "postgresql:///shop?sslpassword=…"),
        ("sqlite:///shop.db", "sqlite:///shop.db"),
        ("memory:", "memory:"),
        ("kafka-1:9092,kafka-2:9092", "kafka-1:9092,kafka-2:9092"),
    ],
)  # fmt: skip
def test_an_address_is_shown_without_its_password(address: str, shown: str) -> None:
    assert masked(address) == shown


def test_what_a_driver_says_is_shown_without_passwords() -> None:
    said = "invalid dsn 'postgresql://shop:hunter2@db/shop': could not connect (see https://db.example/help)"

    assert masked_in(said) == (
        "invalid dsn 'postgresql://shop:…@db/shop': could not connect (see https://db.example/help)"
    )


class OrderPlaced(Event):
    pass


@on("OrderPlaced")
async def pack_order(placed: OrderPlaced) -> None:
    pass


service = Service("shop")


def test_a_service_that_runs_hands_out_the_whole_address_and_prints_it_without_the_password() -> None:
    url = "postgresql://shop:hunter2@db/shop"

    shop = Running(build(service), url, "kafka:9092", cast(Worker, None))

    assert shop.database == url
    assert repr(shop) == "Running('shop', database='postgresql://shop:…@db/shop', log='kafka:9092')"
