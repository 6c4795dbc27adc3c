"""What is done over and over leaves few dead rows, or begins behind them: an old snapshot may keep them for hours."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import pytest

from microflow.conformance.stores.examples import NOW, ORDERS, SECOND, a_claim, commit
from microflow.ports import Changes
from microflow.stores.postgres import inbox
from microflow.stores.postgres.sessions import Sessions
from tests.asynchronous import asynchronous
from tests.stores.postgres.opened import connected, opened

VERSIONS = "select string_agg(xmin::text, ' ' order by shard) from microflow.shards"


@asynchronous
async def test_to_keep_shards_changes_no_row_of_theirs(postgres_url: str) -> None:
    """One row says that a relay goes on asking, not each of its shards."""
    async with opened(postgres_url) as store, connected(postgres_url) as other:
        first = await store.outbox.lease(owner="a", now=NOW, until=NOW + 2 * SECOND)
        taken = await other.fetchval(VERSIONS)

        for number in range(5):
            now = NOW + number * SECOND
            assert await store.outbox.lease(owner="a", now=now, until=now + 2 * SECOND) == first

        assert await other.fetchval(VERSIONS) == taken


@asynchronous
async def test_a_purge_in_portions_goes_on_where_it_was_and_begins_anew_once_it_is_through(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was left out in one, as it was locked, is purged in the next."""
    monkeypatch.setattr(inbox, "PURGED_AT_ONCE", 2)
    begun_at: list[Any] = []
    fetch = Sessions.fetch

    async def noting(self: Sessions, sql: str, *args: object) -> Sequence[Any]:
        if sql == inbox.SQL["purge"]:
            begun_at.append(args[-1])
        return await fetch(self, sql, *args)

    monkeypatch.setattr(Sessions, "fetch", noting)
    async with opened(postgres_url) as store, connected(postgres_url) as other:
        for number in range(7):
            async with store.transaction() as transaction:
                await transaction.claim([a_claim(number)], now=NOW + number * SECOND)
        async with store.transaction() as transaction:
            await transaction.write(Changes(watermarks={ORDERS: 100}))

        async def purge() -> int:
            return await store.inbox.purge(completed_before=NOW + timedelta(days=1), limit=4)

        async with other.transaction():
            await other.execute('select 1 from microflow.inbox where "offset" = 1 for update')
            assert [await purge() for _ in range(2)] == [4, 2]
        assert await purge() == 1

        assert begun_at == [inbox.LONG_AGO, *(NOW + number * SECOND for number in (2, 4, 6)), inbox.LONG_AGO]
        assert await commit(store, [a_claim(number) for number in range(7)]) == [True] * 7
