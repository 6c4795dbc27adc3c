"""Order under concurrency: nothing of a key becomes visible late, and nothing that is parked waits for ever."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random

import pytest

from microflow.conformance.stores.examples import an_outbox_row
from microflow.errors import StoreConflict
from microflow.ports import Changes, OrderingKey
from microflow.stores.postgres import transaction
from tests.asynchronous import asynchronous
from tests.stores.postgres.opened import connected, opened

WRITERS = 16
ROUNDS = 12
KEYS = [b"a", b"b", b"c"]


async def _late_rows(url: str) -> int:
    """How many rows became visible after a row of their key with a higher position, while many write at once."""
    late = 0
    highest: dict[bytes, int] = {}
    seen: set[int] = set()
    chance = random.Random(1)
    async with opened(url, lanes=WRITERS) as store, connected(url) as reader:

        async def append(keys: list[bytes]) -> None:
            async with store.transaction() as one:
                await one.fence({}, keys=[OrderingKey("payments", keys[0])])
                await one.write(Changes(outbox=[an_outbox_row(0, key=key) for key in keys]))
                await asyncio.sleep(chance.random() / 100)

        async def write() -> None:
            for _ in range(ROUNDS):
                keys = chance.sample(KEYS, 2)
                with contextlib.suppress(StoreConflict):  # those that are named late may be locked in a ring
                    await append(keys)

        writing = asyncio.gather(*(write() for _ in range(WRITERS)))
        while True:
            ended = writing.done()
            for position, key in await reader.fetch("select position, key from microflow.outbox order by position"):
                if position not in seen:
                    late += position < highest.get(key, -1)
            for position, key in await reader.fetch("select position, key from microflow.outbox"):
                seen.add(position)
                highest[key] = max(position, highest.get(key, -1))
            if ended:
                await writing
                return late


@asynchronous
async def test_no_row_of_a_key_becomes_visible_after_one_with_a_higher_position(postgres_url: str) -> None:
    """Within a key positions grow in commit order: the lock on the key comes before the position."""
    assert await _late_rows(postgres_url) == 0


@asynchronous
async def test_without_the_lock_on_the_key_rows_become_visible_late(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The ablation: what the test above would find."""
    everybody_another = itertools.count()
    monkeypatch.setattr(transaction, "number_of", lambda _: next(everybody_another))

    assert await _late_rows(postgres_url) > 0
