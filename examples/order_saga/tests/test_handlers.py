"""The handlers that ask for no transaction, called as the functions they are."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal

from examples.order_saga import customers, payments, shipping
from examples.order_saga.payments import Charge
from examples.order_saga.shipping import Booking
from microflow import Context
from microflow.testing import context

TEN = Decimal("10.00")


@dataclass
class FakeCards:
    answer: Charge
    calls: list[tuple[str, Decimal, str]] = field(default_factory=list)

    async def charge(self, card: str, amount: Decimal, *, idempotency_key: str) -> Charge:
        self.calls.append((card, amount, idempotency_key))
        return self.answer

    async def refund(self, payment_id: str, amount: Decimal, *, idempotency_key: str) -> None:
        self.calls.append((payment_id, amount, idempotency_key))


@dataclass
class FakeCarrier:
    answer: Booking
    called_back: list[str] = field(default_factory=list)

    async def book(self, order_id: str, items: Mapping[str, int], *, idempotency_key: str) -> Booking:
        return self.answer

    async def call_back(self, order_id: str) -> None:
        self.called_back.append(order_id)


ACCEPTED = payments.OrderAccepted(order_id="o-1", items={"cup": 1}, total=TEN, card="4000-good")
RESERVED = shipping.ItemsReserved(order_id="o-1", items={"cup": 1})


def test_take_payment_charges_the_total_and_keeps_the_receipt() -> None:
    execution, cards = context(), FakeCards(Charge("p-1"))

    emitted = asyncio.run(payments.take_payment(ACCEPTED, execution, cards))

    assert emitted == payments.PaymentReceived(order_id="o-1", items={"cup": 1})
    assert cards.calls == [("4000-good", TEN, execution.idempotency_key())]
    assert written(execution) == [("p-1", "o-1", TEN)]


def test_take_payment_keeps_nothing_when_the_card_is_declined() -> None:
    execution, cards = context(), FakeCards(Charge("", declined="too young"))

    emitted = asyncio.run(payments.take_payment(ACCEPTED, execution, cards))

    assert emitted == payments.PaymentDeclined(order_id="o-1", reason="too young")
    assert written(execution) == []


def test_every_attempt_charges_under_the_same_key() -> None:
    cards = FakeCards(Charge("p-1"))

    for attempt in (1, 2):
        asyncio.run(payments.take_payment(ACCEPTED, context(attempt=attempt), cards))

    assert cards.calls[0] == cards.calls[1]


def test_refund_payment_gives_the_amount_back_and_says_why() -> None:
    execution, cards = context(), FakeCards(Charge(""))
    refund = payments.RefundApproved(order_id="o-1", payment_id="p-1", amount=TEN, reason="unicorn is out of stock")

    emitted = asyncio.run(payments.refund_payment(refund, execution, cards))

    assert emitted == payments.PaymentRefunded(order_id="o-1", amount=TEN, reason="unicorn is out of stock")
    assert cards.calls == [("p-1", TEN, execution.idempotency_key())]
    assert written(execution) == [("p-1",)]


def test_schedule_shipment_keeps_the_tracking_number() -> None:
    execution = context()

    emitted = asyncio.run(shipping.schedule_shipment(RESERVED, execution, FakeCarrier(Booking("t-1"))))

    assert emitted == shipping.ShipmentScheduled(order_id="o-1", tracking="t-1")
    assert written(execution) == [("t-1", "o-1")]


def test_schedule_shipment_says_why_the_carrier_refuses() -> None:
    execution = context()

    emitted = asyncio.run(shipping.schedule_shipment(RESERVED, execution, FakeCarrier(Booking("", refused="too big"))))

    assert emitted == shipping.ShipmentRefused(order_id="o-1", reason="too big")
    assert written(execution) == []


def test_a_released_order_s_parcel_is_called_back() -> None:
    execution, carrier = context(), FakeCarrier(Booking(""))

    asyncio.run(shipping.call_shipment_back(shipping.ItemsReleased(order_id="o-1"), execution, carrier))

    assert carrier.called_back == ["o-1"]
    assert written(execution) == [("o-1",)]


def test_a_cancelled_order_s_letter_gives_the_reason() -> None:
    execution = context()

    asyncio.run(customers.confirm_cancellation(customers.OrderCancelled(order_id="o-1", reason="why not"), execution))

    assert written(execution) == [("o-1", "Your order is cancelled: why not. It costs you nothing.")]


def written(execution: Context) -> list[tuple[object, ...]]:
    return [write.args for write in execution.writes.kept]
