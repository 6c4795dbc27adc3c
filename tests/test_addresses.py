"""Addresses: whatever is shown, the password is not in it."""

from __future__ import annotations

import pytest

from microflow.addresses import masked, masked_in


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
