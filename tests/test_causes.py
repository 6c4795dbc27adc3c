"""What an error says: its cause first."""

from __future__ import annotations

import pytest
from pydantic import BaseModel, ValidationError

from microflow.causes import said_by
from microflow.errors import DecodeError


class Order(BaseModel):
    order_id: str
    total: int


class Silent(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


def test_a_group_says_its_first_error_and_how_many_there_are() -> None:
    group = ExceptionGroup("tasks", [ExceptionGroup("inner", [KeyError("order_id")]), ValueError("no\nmore")])

    assert said_by(group) == "KeyError: 'order_id' (the first of 2 errors in ExceptionGroup)"


def test_an_invalid_model_says_which_fields_and_why() -> None:
    with pytest.raises(ValidationError) as refused:
        Order.model_validate({"total": "much"})

    assert said_by(refused.value) == (
        "ValidationError: Order: order_id: Field required; "
        "total: Input should be a valid integer, unable to parse string as an integer"
    )


def test_where_an_error_was_comes_after_what_it_was() -> None:
    error = DecodeError("It does not fit:", where="/home/ada/shop.py:4", why="total: expected a number")

    assert said_by(error) == "DecodeError: It does not fit:\n  total: expected a number\n  at /home/ada/shop.py:4"


def test_an_error_whose_text_cannot_be_had_is_still_told() -> None:
    assert said_by(Silent()) == "Silent: (its text cannot be had: RuntimeError)"
    assert said_by(KeyError()) == "KeyError"
