"""The graph: who emits what and who handles it, over several services."""

from __future__ import annotations

from pathlib import Path

import pytest

from microflow.graph import Graph, describe_graph, graph_of, problems, summary
from microflow.service import Service, build
from tests.user_code import place_of, user_module

SHOP = {
    "orders": """
        class OrderPlaced(Event, key="order_id"):
            order_id: str
        class OrderCompleted(Event, key="order_id", external=True):
            order_id: str
        @on("OrderPlaced")
        async def accept(order: OrderPlaced) -> OrderAccepted: ...
        @on("PaymentReceived")
        async def complete(payment: PaymentReceived) -> OrderCompleted | None: ...
        @on("PaymentDeclined")
        async def cancel(payment: PaymentDeclined) -> None: ...
    """,
    "payments": """
        @on("OrderAccepted")
        async def take(order: OrderAccepted) -> PaymentReceived | PaymentDeclined: ...
    """,
}


def graph(folder: Path, **sources: str) -> Graph:
    return graph_of(build(Service.of_module(user_module(folder, text, name=name))) for name, text in sources.items())


@pytest.fixture
def shop(tmp_path: Path) -> Graph:
    return graph(tmp_path, **SHOP)


def test_every_emitted_event_has_a_handler(shop: Graph) -> None:
    assert summary(shop) == "2 services  4 handlers  5 event types   graph ok: every emitted event has a handler"
    assert shop.unhandled == ()
    assert problems(shop) == []


def test_roots_come_from_outside(shop: Graph) -> None:
    assert shop.roots == {"OrderPlaced"}
    assert [reaction.handler.name for reaction in shop.unemitted] == ["accept"]


def test_edges_are_followed_from_an_emission_to_its_handlers(shop: Graph) -> None:
    handled = {
        emission.type: [f"{each.service}.{each.handler.name}" for each in shop.handlers_of(emission)]
        for emission in shop.emissions
    }

    assert handled == {
        "OrderAccepted": ["payments.take"],
        "OrderCompleted": [],
        "PaymentReceived": ["orders.complete"],
        "PaymentDeclined": ["orders.cancel"],
    }


def test_topics_name_what_travels_on_them(tmp_path: Path) -> None:
    shared = """
        class Paid(Event, topic="payments"): ...
        class Unpaid(Event, topic="payments"): ...
        @on("OrderAccepted")
        async def take(order: OrderAccepted) -> Paid | Unpaid: ...
        @on("Paid", topic="payments")
        async def note(order: OrderAccepted) -> None: ...
    """

    assert graph(tmp_path, payments=shared).topics == {
        "OrderAccepted": frozenset({"OrderAccepted"}),
        "payments": frozenset({"Paid", "Unpaid"}),
    }


def test_the_text_has_a_line_for_each_handler(shop: Graph) -> None:
    assert describe_graph(shop).splitlines() == [
        "OrderPlaced → orders.accept → OrderAccepted",
        "PaymentDeclined → orders.cancel",
        "PaymentReceived → orders.complete → OrderCompleted",
        "OrderAccepted → payments.take → PaymentReceived | PaymentDeclined",
    ]


def test_an_event_that_nobody_handles_is_told_with_what_to_type(tmp_path: Path) -> None:
    alone = graph(tmp_path, payments=SHOP["payments"])

    received, declined = problems(alone)
    assert received.what == "No handler listens to PaymentReceived, but payments.take emits it."
    assert received.where == place_of(tmp_path, "@on(")
    assert received.fix == (
        'Add @on("PaymentReceived"), or say that it leaves the system: class PaymentReceived(Event, external=True)'
    )
    assert declined.what.startswith("No handler listens to PaymentDeclined")
    assert summary(alone) == "1 service  1 handler  3 event types   no handler for PaymentDeclined, PaymentReceived"


def test_a_misspelt_type_is_brought_together_with_the_one_that_was_meant(tmp_path: Path) -> None:
    orders = '@on("PaymentRecieved")\nasync def complete(payment: PaymentReceived) -> None: ...'
    misspelt = graph(tmp_path, payments=SHOP["payments"], orders=orders)

    received = problems(misspelt)[0]
    assert received.why == "There is one for PaymentRecieved, which nobody emits: did you mean that?"


def test_a_handler_that_waits_on_another_topic_is_told(tmp_path: Path) -> None:
    payments = """
        class Paid(Event, topic="payments"): ...
        @on("OrderAccepted")
        async def take(order: OrderAccepted) -> Paid: ...
    """
    orders = """
        class Paid(Event): ...
        @on("Paid")
        async def complete(payment: Paid) -> None: ...
    """
    parted = graph(tmp_path, payments=payments, orders=orders)

    (lost,) = problems(parted)
    assert lost.what == (
        f"payments.take emits Paid to payments, but orders.complete "
        f"({place_of(tmp_path, '@on(', name='orders')}) reads it from Paid."
    )
    assert lost.fix == 'Say @on("Paid", topic="payments")'
    assert parted.roots == {"OrderAccepted"}
    assert [reaction.type for reaction in parted.unemitted] == ["OrderAccepted", "Paid"]


def test_no_service_is_a_graph_too() -> None:
    assert (
        summary(graph_of([])) == "0 services  0 handlers  0 event types   graph ok: every emitted event has a handler"
    )
