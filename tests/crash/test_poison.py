"""One bad event among many: it stalls nobody but itself, and nothing of it is lost."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

from microflow.clocks import SystemClock
from microflow.connection import Connection
from microflow.context import Context
from microflow.events import Event
from microflow.handlers import on
from microflow.retries import Retry
from microflow.service import Service
from tests.asynchronous import asynchronous
from tests.crash.one_process import OneProcess

GOOD = 1000
POISON = 500


class Charged(Event, key="account"):
    account: str
    number: int


class Transferred(Event, key="account"):
    account: str
    number: int


@dataclass(slots=True)
class Bank:
    is_mended: bool = False
    answers: asyncio.Event = field(default_factory=asyncio.Event)


@on("Charged", retry=Retry(attempts=2, first_delay=timedelta(milliseconds=10)))
async def charge(charged: Charged, connection: Connection, bank: Bank) -> None:
    await connection.execute("insert into effects values ('charge', $1, null)", charged.number)
    if charged.number == POISON and not bank.is_mended:
        raise ZeroDivisionError("a bug")


@on("Transferred")
async def book(transferred: Transferred, context: Context, bank: Bank) -> None:
    context.write("insert into effects values ('book', $1, null)", transferred.number)
    if transferred.number == 0:
        await bank.answers.wait()


service = Service("bank")


@asynchronous
async def test_a_poison_event_among_a_thousand_good_ones_becomes_one_dead_letter_and_is_redriven_once(
    tmp_path: Path,
) -> None:
    bank = Bank()
    async with OneProcess(service, tmp_path, dependencies={Bank: bank}) as process:
        records = [
            process.record(Charged(account=f"account-{number % 50}", number=number)) for number in range(GOOD + 1)
        ]
        poison = records[POISON]
        await process.publish(records)
        await process.until(lambda: process.ended["charge", "dead"] == 1, "it is given up")
        await process.until_idle()

        assert process.rows("select count(*), count(distinct number) from effects") == [(GOOD, GOOD)]
        (dead,) = await process.store.dead_letters.list()
        assert (dead.record.key, dead.record.value, dead.record.headers) == (poison.key, poison.value, poison.headers)
        assert (dead.reason, dead.attempts, dead.error) == ("exhausted", 2, "ZeroDivisionError: a bug")

        bank.is_mended = True
        assert await process.store.dead_letters.redrive([dead.id], now=SystemClock().now()) == {dead.id}
        assert await process.store.dead_letters.redrive([dead.id], now=SystemClock().now()) == frozenset()
        await process.until(lambda: process.ended["charge", "done"] == GOOD + 1, "it is handled after all")
        await process.until_idle()

        assert process.rows(f"select count(*) from effects where number = {POISON}") == [(1,)]
        (done,) = await process.store.dead_letters.list()
        assert done.state == "done"


@asynchronous
async def test_an_event_whose_call_takes_long_delays_its_own_key_only(tmp_path: Path) -> None:
    """Semantics 2: a transaction is formed from what is finished and never waits for what runs."""
    bank = Bank()
    async with OneProcess(service, tmp_path, dependencies={Bank: bank}) as process:
        # The first of the batch, and of one partition with half of the others; number 50 is of its key.
        await process.publish(
            [process.record(Transferred(account=f"account-{number % 50}", number=number)) for number in range(100)]
        )
        await process.until(lambda: process.ended["book", "done"] == 98, "all but its own key's are committed")

        committed = {number for (number,) in process.rows("select number from effects")}
        assert committed == set(range(100)) - {0, 50}
        (watermark,) = process.rows("select min(watermark) from microflow_partitions where topic = 'Transferred'")
        assert watermark == (0,)

        bank.answers.set()
        await process.until(lambda: process.ended["book", "done"] == 100, "its key goes on")
        assert process.rows("select number from effects where number in (0, 50)") == [(0,), (50,)]
