"""The card company and the carrier: simulated, and as bad as the real ones."""

import asyncio
from collections.abc import Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from examples.order_saga.payments import CardCompany, Cards, Charge, card_company
from examples.order_saga.shipping import Carrier, ParcelCarrier, parcel_carrier

KEY = "0123456789abcdef0123456789abcdef"
TEN = Decimal("10.00")


def test_a_card_is_charged_once_however_often_the_company_is_asked() -> None:
    company = CardCompany(":memory:")

    charges = [asyncio.run(company.charge("4000-good", TEN, idempotency_key=KEY)) for _ in range(3)]

    assert charges == [Charge("payment-0123456789ab")] * 3
    assert movements(company) == [("charge", "10.00")]
    company.close()


def test_a_declined_card_moves_no_money() -> None:
    company = CardCompany(":memory:")

    charge = asyncio.run(company.charge("4000-declined", TEN, idempotency_key=KEY))

    assert charge.declined == "the card was declined"
    assert movements(company) == [("decline", "10.00")]
    company.close()


def test_when_an_answer_is_lost_the_money_has_moved_and_asking_again_tells() -> None:
    company = CardCompany(":memory:", lost=1.0)

    with pytest.raises(ConnectionError):
        asyncio.run(company.charge("4000-good", TEN, idempotency_key=KEY))
    assert movements(company) == [("charge", "10.00")]
    assert not asyncio.run(company.charge("4000-good", TEN, idempotency_key=KEY)).declined
    assert movements(company) == [("charge", "10.00")]
    company.close()


def test_the_company_remembers_what_a_killed_service_told_it(tmp_path: Path) -> None:
    before = CardCompany(tmp_path / "ledger.db")
    asyncio.run(before.charge("4000-good", TEN, idempotency_key=KEY))
    after = CardCompany(tmp_path / "ledger.db")  # while the first is still open: nobody said goodbye

    asyncio.run(after.charge("4000-good", TEN, idempotency_key=KEY))

    assert movements(after) == [("charge", "10.00")]
    before.close()
    after.close()


def test_the_carrier_hesitates_over_an_antique_clock_and_books_it_then() -> None:
    carrier = ParcelCarrier(hesitations=1)
    with pytest.raises(TimeoutError):
        asyncio.run(carrier.book("o-1", {"antique clock": 1}, idempotency_key=KEY))

    booking = asyncio.run(carrier.book("o-1", {"antique clock": 1}, idempotency_key=KEY))

    assert booking.tracking == "parcel-0123456789ab"
    assert not booking.refused


def test_the_carrier_does_not_take_a_grand_piano() -> None:
    booking = asyncio.run(ParcelCarrier().book("o-1", {"grand piano": 1}, idempotency_key=KEY))

    assert booking.refused == "the carrier does not take a grand piano"


def test_the_environment_says_how_bad_the_day_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORDER_SAGA_LEDGER", str(tmp_path / "new folder" / "ledger.db"))
    monkeypatch.setenv("ORDER_SAGA_SLOW_CARDS", "0")
    monkeypatch.setenv("ORDER_SAGA_SLOW_CARRIER", "0")
    monkeypatch.setenv("ORDER_SAGA_LOST_ANSWERS", "1")

    async def first_call(provided: Mapping[Any, Any]) -> None:
        await provided[Cards].charge("4000-good", TEN, idempotency_key=KEY)

    async def scenario() -> None:
        async with card_company() as provided:
            with pytest.raises(ConnectionError):
                await first_call(provided)
        async with parcel_carrier() as provided:
            assert (await provided[Carrier].book("o-1", {"cup": 1}, idempotency_key=KEY)).tracking

    asyncio.run(scenario())
    assert (tmp_path / "new folder" / "ledger.db").exists()


def movements(company: CardCompany) -> list[tuple[str, str]]:
    return company.ledger.execute("select movement, amount from ledger").fetchall()
