"""Logging as the command sets it up."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator

import pytest

from microflow.logs import set_up_logging

logger = logging.getLogger("shop.take_payment")


@pytest.fixture(autouse=True)
def the_root_logger_is_put_back() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


def test_json_has_the_fields_that_were_given_as_extra() -> None:
    lines: list[str] = []
    set_up_logging(lines.append, level="info", as_json=True)

    logger.warning("paid %d", 3, extra={"flow": "f-1", "odd": object})

    fields = json.loads(lines[0])
    assert (fields["level"], fields["logger"], fields["message"]) == ("warning", "shop.take_payment", "paid 3")
    assert (fields["flow"], fields["odd"]) == ("f-1", "<class 'object'>")
    assert fields["at"].endswith("Z")


def test_a_message_over_several_lines_is_one_line_of_json() -> None:
    lines: list[str] = []
    set_up_logging(lines.append, level="info", as_json=True)

    logger.info("one\ntwo")

    assert len(lines[0].splitlines()) == 1


def test_for_a_person_warnings_are_named_and_the_context_is_left_out() -> None:
    lines: list[str] = []
    set_up_logging(lines.append, level="info", as_json=False)

    logger.warning("slow", extra={"flow": "f-1", "shop": "north"})
    logging.getLogger("microflow.relay").info("the outbox waits")
    logger.debug("nobody wants this")

    assert [line[13:] for line in lines] == [
        "warning: shop.take_payment: slow  (shop north)",
        "the outbox waits",
    ]


@pytest.mark.parametrize("as_json", [True, False])
def test_a_traceback_shows_the_error_and_where_it_was(as_json: bool) -> None:
    lines: list[str] = []
    set_up_logging(lines.append, level="info", as_json=as_json)

    try:
        json.loads("{")
    except ValueError:
        logger.exception("failed")

    assert "JSONDecodeError" in lines[0]
    assert "test_logs.py" in lines[0]
    assert "json/decoder.py" not in lines[0]
