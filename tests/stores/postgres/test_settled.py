"""Deleted rows that cannot be removed cost nothing, and no row is overlooked because of it, however late it comes."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import sys
from collections.abc import Sequence
from typing import Any

import pytest

from microflow.conformance.stores.examples import an_outbox_row, commit
from microflow.connect import append_to
from microflow.errors import StoreError
from microflow.ports import Changes, OrderingKey
from microflow.stores.postgres import PostgresStore, outbox, settled
from microflow.stores.postgres.outbox import NOBODY
from microflow.stores.postgres.outbox import SQL as OUTBOX
from microflow.stores.postgres.session import Session
from microflow.stores.postgres.settled import NOTHING, Settled
from microflow.stores.postgres.transaction import SQL as WRITE
from tests.asynchronous import asynchronous
from tests.stores.postgres.opened import connected, opened

WRITERS = 12
ROUNDS = 15
KEYS = [b"a", b"b", b"c", b"d"]
APPEND_SLOWLY = """insert into microflow.outbox (service, topic, key, value, headers, created_at)
values ('web', 'payments', 'a', 'late', '\\x', case when pg_advisory_xact_lock(1) is not null then now() end)"""
"""It has its position, the first column's value, and waits for the lock before the row is made."""

HAS_NUMBER = """select backend_xid is not null from pg_stat_activity
where wait_event_type = 'Lock' and datname = current_database()"""


@pytest.fixture(autouse=True)
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each scan and each deletion looks how far things are settled, and no scan begins at the first row in doubt."""
    monkeypatch.setattr(settled, "MANY", 1)
    monkeypatch.setattr(settled, "NOW_AND_THEN", 0.0)
    monkeypatch.setattr(outbox, "DOUBT", float("inf"))


@pytest.fixture
def naive(monkeypatch: pytest.MonkeyPatch) -> None:
    """The ablation: what was deleted last counts as settled, whoever is still appending."""
    exact = Session.fetch

    async def fetch(self: Session, sql: str, *args: object) -> Any:
        return [([],)] if sql == settled.SQL["appenders"] else await exact(self, sql, *args)

    monkeypatch.setattr(Session, "fetch", fetch)


async def _append(store: PostgresStore, *values: int, key: bytes = b"a") -> None:
    await commit(store, outbox=[an_outbox_row(value, key=key) for value in values])


async def _scan(store: PostgresStore) -> list[bytes | None]:
    """What a relay finds, as which it is deleted."""
    async with store.outbox.scan(page=100) as pages:
        rows = [row async for page in pages for row in page]
    await store.outbox.delete([row.position for row in rows])
    return [row.value for row in rows]


async def _settle(store: PostgresStore) -> None:
    """Let rows of another key come and go, until all is settled that can be."""
    for _ in range(4):
        await _append(store, 0, key=b"other")
        assert await _scan(store) == [b"0"]
        assert await _scan(store) == []


async def _found_of_an_append_that_is_committed_late(url: str) -> list[bytes | None]:
    async with opened(url) as store, connected(url) as caller:
        await _settle(store)
        transaction = caller.transaction()
        await transaction.start()
        await append_to(caller, "web", [an_outbox_row(1, key=b"a")])
        await _settle(store)
        await transaction.commit()
        await _append(store, 2)
        return await _scan(store)


@asynchronous
async def test_a_row_that_is_committed_long_after_later_ones_were_deleted_is_found(postgres_url: str) -> None:
    """Positions are taken before the commit."""
    assert await _found_of_an_append_that_is_committed_late(postgres_url) == [b"1", b"2"]


@asynchronous
@pytest.mark.usefixtures("naive")
async def test_who_believes_what_was_deleted_last_publishes_its_key_out_of_order(postgres_url: str) -> None:
    """The ablation: what the test above would find."""
    assert await _found_of_an_append_that_is_committed_late(postgres_url) == [b"2"]


@asynchronous
async def test_a_transaction_that_has_a_position_and_no_number_yet_is_waited_for(postgres_url: str) -> None:
    """The age of transactions would not tell: this one gets its number after the look."""
    async with opened(postgres_url) as store, connected(postgres_url) as caller, connected(postgres_url) as holder:
        await holder.execute("select nextval('microflow.outbox_position_seq')")  # the first one of 32 would number it
        await holder.execute("select pg_advisory_lock(1)")
        appending = asyncio.create_task(caller.execute(APPEND_SLOWLY))
        async with asyncio.timeout(5):
            while (has_number := await holder.fetchval(HAS_NUMBER)) is None:  # noqa: ASYNC110 - the server's to tell
                await asyncio.sleep(0.01)
        assert not has_number, "it would be waited for anyway"
        await _settle(store)
        await holder.execute("select pg_advisory_unlock(1)")
        await appending
        await _append(store, 2)

        assert await _scan(store) == [b"late", b"2"]


@asynchronous
async def test_a_transaction_that_is_prepared_is_waited_for(postgres_url: str) -> None:
    """Two-phase commits of the caller's: what is prepared belongs to no session, and is running still."""
    async with opened(postgres_url) as store, connected(postgres_url) as caller:
        if await caller.fetchval("show max_prepared_transactions") == "0":
            pytest.skip("this server has max_prepared_transactions=0: nothing can be prepared")
        await _settle(store)
        await caller.execute("begin")
        await append_to(caller, "web", [an_outbox_row(1, key=b"a")])
        await _append(store, 0, key=b"other")
        assert await _scan(store) == [b"0"]  # who appends was seen
        assert await _scan(store) == []
        await caller.execute("prepare transaction 'order'")
        await _settle(store)
        await caller.execute("commit prepared 'order'")
        await _append(store, 2)

        assert await _scan(store) == [b"1", b"2"]


async def _found_after_a_failover_that_lost_commits(url: str) -> list[bytes | None]:
    async with opened(url) as store, connected(url) as other:
        await _settle(store)
        await other.execute(
            """select pg_terminate_backend(pid) from pg_stat_activity
            where pid <> pg_backend_pid() and datname = current_database()"""
        )
        await other.execute("select setval('microflow.outbox_position_seq', 1)")
        async with opened(url) as another:
            await _append(another, 1)
        for _ in range(10):
            with contextlib.suppress(StoreError):  # until it has noticed what became of its connections
                return await _scan(store)
        raise AssertionError("the store has not come back")


@asynchronous
async def test_what_was_settled_on_a_server_that_is_gone_does_not_count(postgres_url: str) -> None:
    """One that has crashed, or has taken over without the last commits, gives positions once more."""
    assert await _found_after_a_failover_that_lost_commits(postgres_url) == [b"1"]


@asynchronous
async def test_who_believes_a_server_that_is_gone_overlooks_rows(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The ablation: what the test above would find."""
    monkeypatch.setattr(Settled, "_knows", lambda *_: True)
    monkeypatch.setattr(outbox, "next_birth", lambda: sys.maxsize)  # nor does a scan see a new connection

    assert await _found_after_a_failover_that_lost_commits(postgres_url) == []


@asynchronous
async def test_rows_below_what_is_settled_are_found_in_a_while(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody has set positions back by hand: a minute later a scan begins at the first row, and so do the next."""
    async with opened(postgres_url) as store, connected(postgres_url) as other:
        await _settle(store)
        await other.execute("select setval('microflow.outbox_position_seq', 1)")
        await _append(store, 1)
        assert await _scan(store) == []

        monkeypatch.setattr(outbox, "DOUBT", 0.0)
        async with store.outbox.scan(page=100) as pages:
            assert [row.value async for page in pages for row in page] == [b"1"]
        monkeypatch.setattr(outbox, "DOUBT", float("inf"))

        assert await _scan(store) == [b"1"]


async def _overlooked(url: str) -> int:
    """How many rows many writers, whose transactions take some time, and a relay, have not brought out in order."""
    chance = random.Random(1)
    number = 0
    committed: dict[bytes, list[int]] = {key: [] for key in KEYS}
    found: dict[bytes | None, list[int]] = {key: [] for key in KEYS}
    async with opened(url, lanes=WRITERS) as store:

        async def write() -> None:
            nonlocal number
            for _ in range(ROUNDS):
                key = chance.choice(KEYS)
                async with store.transaction() as one:
                    await one.fence({}, keys=[OrderingKey("payments", key)])
                    number += 1
                    committed[key].append(number)
                    await one.write(Changes(outbox=[an_outbox_row(number, key=key)]))
                    await asyncio.sleep(chance.random() / 50)

        writing = asyncio.gather(*(write() for _ in range(WRITERS)))
        while True:
            ended = writing.done()
            async with store.outbox.scan(page=5) as pages:
                rows = [row async for page in pages for row in page]
            for row in rows:
                found[row.key].append(int(row.value or b""))
            await store.outbox.delete([row.position for row in rows])
            if ended:
                await writing
                break
    return sum(numbers != found[key] for key, numbers in committed.items())


@asynchronous
async def test_beside_many_writers_each_row_is_found_in_its_keys_order(postgres_url: str) -> None:
    """Within a key as they were committed, over keys however late; and nothing is left behind."""
    assert await _overlooked(postgres_url) == 0


@asynchronous
@pytest.mark.usefixtures("naive")
async def test_beside_many_writers_who_believes_what_was_deleted_last_overlooks_rows(postgres_url: str) -> None:
    """The ablation: what the test above would find."""
    assert await _overlooked(postgres_url) > 0


async def _blocks(session: Session, sql: str, *args: object) -> int:
    """How many blocks a statement of the store's looks at."""
    async with session.raw.transaction():
        ((plan,),) = await session.raw.fetch(f"explain (analyze, buffers, format json) {sql}", *args)
        found: int = json.loads(plan)[0]["Plan"]["Shared Hit Blocks"]
    return found


@asynchronous
async def test_beside_an_old_snapshot_the_dead_rows_are_not_passed(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A backup, a long report: what was published and deleted since cannot be removed."""
    args: Sequence[object] = ()
    fetch = Session.fetch

    async def noting(self: Session, sql: str, *given: object) -> Any:
        nonlocal args
        args = given if sql == WRITE["write"] else args
        return await fetch(self, sql, *given)

    monkeypatch.setattr(Session, "fetch", noting)
    async with opened(postgres_url) as store, connected(postgres_url) as reporter:
        await _settle(store)
        await reporter.execute("begin isolation level repeatable read")
        await reporter.fetchval("select count(*) from microflow.outbox")
        for _ in range(20):
            await commit(store, outbox=[an_outbox_row(0, key=b"a")._replace(value=b"x" * 1_500)] * 100)
            assert len(await _scan(store)) == 100
        await _settle(store)
        await commit(store, outbox=[an_outbox_row(0, key=b"a")._replace(publisher=7)])
        assert len(await _scan(store)) == 1
        (session, *_) = store._relaying._idle
        known = store._settled.up_to(session)

        page = {after: await _blocks(session, OUTBOX["page"], after, 500, NOBODY) for after in (NOTHING, known)}
        status = {after: await _blocks(session, OUTBOX["status"], after) for after in (NOTHING, known)}
        crowded = {after: await _blocks(session, OUTBOX["crowded"], 5, after) for after in (NOTHING, known)}
        *written, _ = args
        write = {after: await _blocks(session, WRITE["write"], *written, after) for after in (NOTHING, known)}

        for blocks in (page, status, crowded, write):
            assert blocks[NOTHING] > 300  # five rows to a block
            assert blocks[known] < 50
