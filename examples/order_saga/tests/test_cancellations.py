"""A customer who cancels: at every stage, too early, too late, twice."""

import asyncio

from examples.order_saga.shipping import ParcelCarrier
from examples.order_saga.tests.conftest import Start
from examples.order_saga.tests.saga import audit


async def test_a_cancellation_that_overtakes_its_order_cancels_it_before_anything_is_paid(start: Start) -> None:
    saga = await start()
    await saga.cancel()
    await saga.world.settle()
    await saga.place()
    await saga.world.settle()

    assert saga.road() == ["OrderCancellationRequested", "OrderPlaced", "OrderCancelled"]
    assert saga.ledger("charge") == []
    assert await audit(saga) == {"cancelled": 1}


async def test_an_order_cancelled_before_it_came_stays_cancelled_when_it_comes_again(start: Start) -> None:
    saga = await start()
    await saga.cancel()
    for _ in range(2):
        await saga.world.settle()
        await saga.place()
    await saga.world.settle()

    assert await audit(saga) == {"cancelled": 1}


async def test_an_order_withdrawn_while_its_card_is_charged_is_charged_and_refunded(start: Start) -> None:
    saga = await start(lost_answers=1.0)
    await saga.place()
    await saga.world.settle()
    assert saga.road() == ["OrderPlaced", "OrderAccepted"]
    assert len(saga.ledger("charge")) == 1  # and payments does not know it yet

    await saga.cancel()
    await saga.come_to_rest()

    assert saga.road().index("OrderWithdrawn") < saga.road().index("PaymentReceived")
    assert saga.ledger("charge") == saga.ledger("refund")
    assert await audit(saga) == {"cancelled": 1}


async def test_an_order_withdrawn_while_its_card_is_declined_is_rejected(start: Start) -> None:
    saga = await start(lost_answers=1.0)
    await saga.place(card="4000-declined")
    await saga.world.settle()
    await saga.cancel()
    await saga.come_to_rest()

    assert saga.road()[-3:] == ["OrderWithdrawn", "PaymentDeclined", "OrderRejected"]
    assert await audit(saga) == {"rejected": 1}


async def test_a_parcel_booked_after_its_order_was_withdrawn_is_called_back(start: Start) -> None:
    saga = await start(carrier=ParcelCarrier(hesitations=3))
    await saga.place(items={"antique clock": 1})
    await saga.world.settle()
    assert saga.road()[-1] == "ItemsReserved"

    await saga.cancel()
    await saga.world.settle()
    assert saga.ends() == ["OrderCancelled"]  # the customer need not wait for the carrier
    await saga.come_to_rest()

    assert saga.road()[-1] == "ShipmentScheduled"
    shipments = await saga.world.connection("shipping").fetch("select state from shipments")
    assert [row["state"] for row in shipments] == ["called back"]
    assert await audit(saga) == {"cancelled": 1}


async def test_a_withdrawn_order_that_is_also_out_of_stock_is_refunded_once(start: Start) -> None:
    saga = await start(lost_answers=1.0)
    await saga.place(items={"unicorn": 1})
    await saga.world.settle()
    await saga.cancel()
    await saga.come_to_rest()

    assert {"OrderWithdrawn", "ItemsOutOfStock"} <= set(saga.road())
    assert saga.road().count("RefundApproved") == 1
    assert await audit(saga) == {"cancelled": 1}


async def test_a_cancellation_after_the_parcel_has_left_is_refused_and_explained(start: Start) -> None:
    saga = await start()
    await saga.place()
    await saga.world.settle()
    await saga.cancel()
    await saga.world.settle()

    assert saga.road()[-1] == "OrderCancellationRefused"
    assert (await saga.letters())[-1] == "Your order cannot be cancelled any more: the parcel is on its way."
    assert await audit(saga) == {"completed": 1}


async def test_who_cancels_twice_gets_the_money_back_once(start: Start) -> None:
    saga = await start(lost_answers=1.0)
    await saga.place()
    await saga.world.settle()
    await saga.cancel()
    await saga.cancel()
    await saga.come_to_rest()

    assert saga.road().count("OrderWithdrawn") == 1
    assert await audit(saga) == {"cancelled": 1}


async def test_who_cancels_an_order_that_was_not_delivered_anyway_changes_nothing(start: Start) -> None:
    saga = await start()
    await saga.place(card="4000-declined")
    await saga.world.settle()
    await saga.cancel()
    await saga.world.settle()

    assert saga.road()[-2:] == ["OrderRejected", "OrderCancellationRequested"]
    assert await audit(saga) == {"rejected": 1}


async def test_at_whatever_moment_a_customer_cancels_the_order_ends_once(start: Start) -> None:
    saga = await start(lost_answers=0.2)
    for moment in range(150):
        await saga.place(f"o-{moment}", items={"antique clock": 1} if moment % 3 else {"cup": 1})
        for _ in range(moment):
            await asyncio.sleep(0)
        await saga.cancel(f"o-{moment}")
        await saga.world.settle()
    await saga.come_to_rest()

    ends = await audit(saga)
    assert ends["completed"] > 10
    assert ends["cancelled"] > 10
