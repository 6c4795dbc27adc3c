"""A handler is retired while its service is at work: both lock the keys of what is parked."""

from __future__ import annotations

import asyncio
from typing import Any

from microflow.conformance.stores.examples import NOW, SECOND, park, parked
from microflow.handler_changes import retire_handler
from microflow.handlers import Trigger
from microflow.stores.postgres.locks import PARKED_KEY
from tests.asynchronous import asynchronous
from tests.stores.postgres.opened import connected, opened

KEYS = (b"order-1", b"order-2")


async def _numbers(connection: Any) -> list[int]:
    """The numbers of the locks on the parked keys, in the order in which they are taken."""
    question = """
        select hashtextextended('payments ' || topic || ' ' || encode(key, 'hex'), 0)::bit(32)::integer as number
        from microflow.parked order by number
    """
    return [row["number"] for row in await connection.fetch(question)]


@asynchronous
async def test_a_deadlock_with_a_service_at_work_is_tried_again(postgres_url: str) -> None:
    """Semantics 5 and 12."""
    async with opened(postgres_url) as store, connected(postgres_url) as service, connected(postgres_url) as eye:
        await store.handlers.register(
            {"take_payment": [Trigger("OrderAccepted", "orders")]}, owner="me", now=NOW, until=NOW
        )
        await park(store, *(parked(number, key=key) for number, key in enumerate(KEYS)))
        first, second = await _numbers(eye)
        lock = f"select pg_advisory_xact_lock({PARKED_KEY}, $1::integer)"
        async with service.transaction():
            await service.execute("set local deadlock_timeout = '20s'")  # the other one is to give way
            await service.execute(lock, second)
            retiring = asyncio.create_task(retire_handler(store, "take_payment", now=NOW + SECOND))
            while not await eye.fetchval("select count(*) from pg_locks where locktype = 'advisory' and not granted"):
                assert not retiring.done()
                await asyncio.sleep(0.01)

            await service.execute(lock, first)

        assert await retiring == len(KEYS)
        assert len(await store.dead_letters.list()) == len(KEYS)
