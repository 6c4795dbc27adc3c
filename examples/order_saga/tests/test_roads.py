"""Every road an order can take, from the shop's event to the last letter."""

from datetime import timedelta

from examples.order_saga.shipping import ParcelCarrier
from examples.order_saga.tests.conftest import Start
from examples.order_saga.tests.saga import audit


async def test_a_good_order_is_paid_reserved_shipped_and_completed(start: Start) -> None:
    saga = await start()
    await saga.place()
    await saga.world.settle()

    assert saga.road() == [
        "OrderPlaced",
        "OrderAccepted",
        "PaymentReceived",
        "ItemsReserved",
        "ShipmentScheduled",
        "OrderCompleted",
    ]
    assert await saga.letters() == ["Thank you, your order is accepted.", "Your parcel is on its way."]
    assert await audit(saga) == {"completed": 1}


async def test_an_order_whose_card_is_declined_is_rejected_and_costs_nothing(start: Start) -> None:
    saga = await start()
    await saga.place(card="4000-declined")
    await saga.world.settle()

    assert saga.road() == ["OrderPlaced", "OrderAccepted", "PaymentDeclined", "OrderRejected"]
    assert (await saga.letters())[-1] == "Your order cannot be carried out: the card was declined."
    assert await audit(saga) == {"rejected": 1}


async def test_what_is_paid_for_and_out_of_stock_is_refunded_before_the_order_is_cancelled(start: Start) -> None:
    saga = await start()
    await saga.place(items={"teapot": 1, "unicorn": 1})
    await saga.world.settle()

    assert saga.road() == [
        "OrderPlaced",
        "OrderAccepted",
        "PaymentReceived",
        "ItemsOutOfStock",
        "RefundApproved",
        "PaymentRefunded",
        "OrderCancelled",
    ]
    assert (await saga.letters())[-1].startswith("Your order is cancelled: unicorn is out of stock.")
    assert await audit(saga) == {"cancelled": 1}  # and the teapot is back on the shelf


async def test_of_five_orders_for_the_last_three_teapots_three_are_completed(start: Start) -> None:
    saga = await start(shelf={"teapot": 3})
    for number in range(5):
        await saga.place(f"o-{number}", items={"teapot": 1})
    await saga.world.settle()

    assert await audit(saga) == {"completed": 3, "cancelled": 2}


async def test_a_carrier_that_does_not_answer_is_asked_again_until_it_does(start: Start) -> None:
    saga = await start(carrier=ParcelCarrier(hesitations=8))
    await saga.place(items={"antique clock": 1})
    await saga.world.settle()
    assert saga.road()[-1] == "ItemsReserved"

    await saga.world.advance(timedelta(minutes=5))

    assert saga.road()[-2:] == ["ShipmentScheduled", "OrderCompleted"]
    assert await audit(saga) == {"completed": 1}


async def test_while_the_carrier_hesitates_over_one_order_the_others_go_on(start: Start) -> None:
    saga = await start()
    await saga.place("slow", items={"antique clock": 1})
    await saga.place("quick")
    await saga.world.settle()

    assert saga.ends("slow") == []
    assert saga.ends("quick") == ["OrderCompleted"]


async def test_what_the_carrier_refuses_is_refunded_and_put_back_on_the_shelf(start: Start) -> None:
    saga = await start()
    await saga.place(items={"cup": 2, "grand piano": 1})
    await saga.world.settle()

    assert saga.road()[-5:-2] == ["ShipmentRefused", "RefundApproved", "PaymentRefunded"]
    assert set(saga.road()[-2:]) == {"OrderCancelled", "ItemsReleased"}
    assert await audit(saga) == {"cancelled": 1}


async def test_the_same_order_placed_twice_is_charged_once_and_ends_once(start: Start) -> None:
    saga = await start()
    await saga.place()
    await saga.place()
    await saga.world.settle()
    await saga.place()
    await saga.world.settle()

    assert saga.road().count("OrderPlaced") == 3
    assert len(saga.ledger("charge")) == 1
    assert await audit(saga) == {"completed": 1}


async def test_the_card_company_s_lost_answer_costs_the_customer_nothing(start: Start) -> None:
    saga = await start(lost_answers=1.0)
    await saga.place(items={"teapot": 1, "unicorn": 1})
    await saga.come_to_rest()

    assert saga.ends() == ["OrderCancelled"]
    assert (len(saga.ledger("charge")), len(saga.ledger("refund"))) == (1, 1)
    assert await audit(saga) == {"cancelled": 1}


async def test_an_order_for_nothing_is_a_dead_letter_and_no_order(start: Start) -> None:
    saga = await start()
    await saga.place(items={"teapot": 0})
    await saga.world.settle()

    (letter,) = saga.world.dead_letters("orders")
    assert letter.error == "Reject: o-1 is no order: {'teapot': 0} for 49.80"
    assert saga.road() == ["OrderPlaced"]
