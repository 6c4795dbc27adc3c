"""The context of an execution: who, why, which attempt, and the writes it leaves."""

from __future__ import annotations

import dataclasses
import logging
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from microflow.context import Context, Write
from microflow.errors import MicroflowError
from microflow.ids import digest_of
from microflow.records import Record, TopicPartition

NOW = datetime(2026, 5, 4, 3, 2, 1, tzinfo=UTC)


def a_context(**overrides: Any) -> Context:
    given: dict[str, Any] = {
        "service": "payments",
        "handler": "take_payment",
        "event_id": "e-1",
        "correlation_id": "flow-1",
        "causation_id": "e-0",
        "key": "order-1",
        "attempt": 1,
        "occurred_at": NOW - timedelta(seconds=1),
        "now": NOW,
        "record": Record("orders", 2, b"order-1", b"{}", (("ce_id", b"e-1"),), NOW, 17),
        "digest": digest_of("/services/orders", "e-1"),
    }
    return Context(**given | overrides)


def test_it_knows_the_event_the_attempt_and_the_record() -> None:
    context = a_context(attempt=3)

    assert (context.event_id, context.correlation_id, context.causation_id) == ("e-1", "flow-1", "e-0")
    assert (context.key, context.attempt, context.now, context.occurred_at) == (
        "order-1",
        3,
        NOW,
        NOW - timedelta(0, 1),
    )
    assert context.record.source == TopicPartition("orders", 2)
    assert (context.record.offset, context.record.timestamp) == (17, NOW)
    assert dict(context.record.headers) == {"ce_id": b"e-1"}


def test_it_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        a_context().attempt = 2  # type: ignore[misc] # that is the point


def test_writes_are_kept_in_order() -> None:
    context = a_context()

    context.write("insert into payments values ($1, $2)", "order-1", 5)
    context.write("delete from cards")

    assert context.writes.kept == [
        Write("insert into payments values ($1, $2)", ("order-1", 5)),
        Write("delete from cards", ()),
    ]
    assert a_context().writes.kept == []


def test_a_write_after_the_handler_returned_is_refused() -> None:
    context = a_context()
    context.writes.closed = True

    with pytest.raises(MicroflowError, match="after take_payment had returned"):
        context.write("delete from cards")
    assert context.writes.kept == []


def test_an_idempotency_key_is_stable_over_attempts_and_redrives() -> None:
    first = a_context(attempt=1)
    redriven = a_context(attempt=9, now=NOW + timedelta(days=9), record=first.record._replace(offset=99))

    assert first.idempotency_key() == redriven.idempotency_key()
    assert first.idempotency_key("charge") == redriven.idempotency_key("charge")
    assert len(first.idempotency_key()) == 32


def test_an_idempotency_key_differs_for_every_service_handler_event_and_label() -> None:
    keys = {
        a_context().idempotency_key(),
        a_context().idempotency_key("charge"),
        a_context(handler="refund").idempotency_key(),
        a_context(service="shipping").idempotency_key(),
        a_context(digest=digest_of("/services/orders", "e-2")).idempotency_key(),
        a_context(handler="take_paymentc", service="payments").idempotency_key("harge"),
    }

    assert len(keys) == 6


def test_its_logger_says_which_flow_event_handler_and_attempt(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        a_context(attempt=2).logger.info("charging %s", "card")

    (record,) = caplog.records
    assert record.name == "payments.take_payment"
    assert record.getMessage() == "charging card"
    assert (record.flow, record.event, record.handler, record.attempt) == (  # type: ignore[attr-defined] # extras
        "flow-1",
        "e-1",
        "take_payment",
        2,
    )


def test_its_text_shows_no_internals() -> None:
    assert "digest" not in repr(a_context())
    assert "writes" not in repr(a_context())
