"""What a server, a network and a handler can do to a transaction: it is committed once, or told to be tried again."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import pytest

from microflow.conformance.stores.examples import NOW, ORDERS, a_claim, a_letter, an_outbox_row, bury, raised
from microflow.errors import Fenced, StoreConflict, StoreError, StoreUnavailable
from microflow.ports import Changes, Transaction
from microflow.stores.postgres import PostgresStore, sessions
from servers.ports import LOOPBACK
from servers.proxy import Proxy
from tests.asynchronous import asynchronous
from tests.stores.postgres.opened import connected, opened


async def _commit(
    store: PostgresStore, number: int = 1, *, last: Callable[[Transaction], Awaitable[None]] | None = None
) -> bool:
    async with store.transaction() as transaction:
        (granted,) = await transaction.claim([a_claim(number)], now=NOW)
        if granted:
            await transaction.write(Changes(outbox=[an_outbox_row(number)]))
        if last is not None:
            await last(transaction)
    return granted


MINE = "application_name = 'microflow' and datname = current_database()"


async def _until(connection: Any, condition: str) -> None:
    async with asyncio.timeout(20):
        while not await connection.fetchval(condition):
            await connection.execute("select pg_sleep(0.01)")


async def _until_marked(store: PostgresStore, offset: int) -> None:
    async with asyncio.timeout(20):
        while (await store.partitions.watermarks()).get(ORDERS, -1) < offset:
            pass


async def _pending(store: PostgresStore) -> int:
    return (await store.outbox.status()).pending


@asynchronous
async def test_a_commit_whose_answer_was_lost_is_answered_by_the_claims(postgres_url: str) -> None:
    """Rule 5: do it again on a fresh connection; what was committed is not done twice."""
    parts = urlsplit(postgres_url)
    assert parts.port is not None
    with Proxy(parts.port) as proxy:
        url = parts._replace(netloc=f"{parts.username}@{LOOPBACK}:{proxy.port}").geturl()
        async with opened(url) as store:
            await store.time()
            proxy.lose_answer(b"COMMIT\0")

            error = await raised(StoreError, lambda: _commit(store))

            assert error.transient
            assert await _commit(store) is False, "it was committed, and nobody was told"
            assert await _pending(store) == 1


@asynchronous
async def test_a_cancellation_in_the_commit_does_not_leave_it_half_way(postgres_url: str) -> None:
    """The commit is waited for: afterwards it is known that nothing more happens on that connection."""
    async with opened(postgres_url) as store, connected(postgres_url) as other:
        await other.execute(
            """create table slow (id text);
            create function wait() returns trigger language plpgsql as $$
            begin perform pg_sleep(0.5); return null; end $$;
            create constraint trigger wait after insert on slow deferrable initially deferred
            for each row execute function wait()"""
        )

        async def insert(transaction: Transaction) -> None:
            await transaction.connection.execute("insert into slow values ('a')")

        task = asyncio.create_task(_commit(store, last=insert))
        await _until(
            other, f"select count(*) = 1 from pg_stat_activity where {MINE} and query = 'commit' and state = 'active'"
        )
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

        assert task.cancelled()
        assert await other.fetchval("select count(*) from slow") == 1
        assert await _commit(store) is False


@asynchronous
async def test_a_terminated_session_is_a_passing_error_and_is_replaced(postgres_url: str) -> None:
    """Connections that died are tried again on a fresh one, whether they were in a transaction or idle."""
    async with opened(postgres_url) as store, connected(postgres_url) as other:
        mine = f"select pid, pg_terminate_backend(pid) from pg_stat_activity where {MINE}"
        kill = f"select array_agg(pid) from ({mine}) as killed"

        async def terminate(_: Transaction) -> None:
            await other.fetchval(kill)

        error = await raised(StoreError, lambda: _commit(store, last=terminate))
        assert error.transient
        assert await _commit(store)
        killed = await other.fetchval(kill)
        await _until(other, f"select count(*) = 0 from pg_stat_activity where pid = any('{set(killed)}')")

        try:
            await _commit(store, 2)
        except StoreUnavailable:  # the server knows before the client does, whose first use fails then
            assert await _commit(store, 2)
        assert await _pending(store) == 2


@asynchronous
async def test_a_deadlock_is_a_conflict(postgres_url: str) -> None:
    """Rule 5: a deadlock is no attempt of the handler; on a fresh connection it passes."""
    async with opened(postgres_url) as store, connected(postgres_url) as other:
        await other.execute(
            "create table shelf (id text primary key, n int); insert into shelf values ('a', 0), ('b', 0)"
        )
        both = asyncio.Barrier(2)

        async def take(first: str, second: str) -> None:
            async with store.transaction() as transaction:
                await transaction.connection.execute("update shelf set n = n + 1 where id = $1", first)
                await both.wait()
                await transaction.connection.execute("update shelf set n = n + 1 where id = $1", second)

        outcomes = await asyncio.gather(take("a", "b"), take("b", "a"), return_exceptions=True)

        (lost,) = [each for each in outcomes if each is not None]
        assert isinstance(lost, StoreConflict)
        assert lost.transient
        assert await other.fetch("select n from shelf") == [(1,), (1,)]


@asynchronous
async def test_a_lock_that_is_not_given_in_time_is_a_conflict(postgres_url: str) -> None:
    """Nobody waits for ever for somebody else's lock."""
    async with opened(postgres_url) as store, connected(postgres_url) as other:
        await other.execute("create table shelf (id text primary key)")
        async with other.transaction():
            await other.execute("lock table shelf")

            async def read(transaction: Transaction) -> None:
                await transaction.connection.fetch("select * from shelf")

            error = await raised(StoreError, lambda: _commit(store, last=read))

        assert isinstance(error, StoreConflict)
        assert await _commit(store)


@pytest.mark.parametrize("half_said", [False, True])
@asynchronous
async def test_a_process_that_pauses_in_its_transaction_frees_its_locks_after_seconds(
    postgres_url: str, half_said: bool
) -> None:
    """Takeover is promised: the session of a process that was stopped is ended, and its commit fails.

    The server does it between statements. Where it still waits for the rest of one, it never would.
    """
    async with opened(postgres_url) as zombie, opened(postgres_url) as owner:
        epoch = (await zombie.partitions.take([ORDERS], owner="zombie"))[ORDERS].epoch

        async def pause() -> None:
            async with zombie.transaction() as transaction:
                await transaction.fence({ORDERS: epoch})
                await transaction.claim([a_claim(1)], now=NOW)
                if half_said:
                    await transaction.connection.raw.prepare("select 1")
                began = time.monotonic()
                await owner.partitions.take([ORDERS], owner="owner")
                assert time.monotonic() - began < 9

        assert (await raised(StoreError, pause)).transient
        assert await _commit(owner)
        await raised(Fenced, lambda: _fenced(zombie, epoch))


async def _fenced(store: PostgresStore, epoch: int) -> None:
    async with store.transaction() as transaction:
        await transaction.fence({ORDERS: epoch})


@asynchronous
async def test_nothing_is_committed_under_an_epoch_that_is_over_even_when_the_two_race(postgres_url: str) -> None:
    """Rule 14: under the epochs valid at commit. What the old owner commits, the new one has seen."""
    async with opened(postgres_url) as old, opened(postgres_url) as new:
        for round_ in range(15):
            epoch = (await old.partitions.take([ORDERS], owner="old"))[ORDERS].epoch
            reached = 0

            async def work(epoch: int = epoch, base: int = round_ * 1_000) -> None:
                nonlocal reached
                for offset in range(base, base + 1_000):
                    async with old.transaction() as transaction:
                        await transaction.fence({ORDERS: epoch})
                        await transaction.write(Changes(watermarks={ORDERS: offset}))
                    reached = offset

            working = asyncio.create_task(work())
            await _until_marked(new, round_ * 1_000 + 2)
            seen = (await new.partitions.take([ORDERS], owner="new"))[ORDERS].watermark
            with pytest.raises(Fenced):
                await working

            assert (await new.partitions.watermarks())[ORDERS] == seen == reached


@asynchronous
async def test_a_commit_on_the_drivers_own_connection_is_noticed(postgres_url: str) -> None:
    """A transaction that was ended behind our back is told, also when another one was begun."""
    async with opened(postgres_url) as store:
        for number, sql in enumerate(("commit", "commit; begin", "rollback")):

            async def run(number: int = number, sql: str = sql) -> None:
                async with store.transaction() as transaction:
                    await transaction.claim([a_claim(number)], now=NOW)
                    await transaction.connection.raw.execute(sql)
                    await transaction.write(Changes(outbox=[an_outbox_row(1)]))

            error = await raised(StoreError, run)
            assert "behind microflow's back" in str(error)
        assert await _pending(store) == 0


@asynchronous
async def test_an_error_that_was_swallowed_on_the_drivers_own_connection_is_noticed(postgres_url: str) -> None:
    """The server answers such a commit by rolling back, without an error."""
    async with opened(postgres_url) as store:

        async def swallow(transaction: Transaction) -> None:
            with pytest.raises(asyncpg.PostgresError):
                await transaction.connection.raw.execute("selekt")

        assert "rolled back" in str(await raised(StoreError, lambda: _commit(store, last=swallow)))
        assert await _commit(store)


@asynchronous
async def test_a_database_that_only_reads_is_unavailable_and_fails_the_probe(postgres_url: str) -> None:
    """Rule 5: then nothing is counted, and the service waits."""
    async with opened(postgres_url) as store, connected(postgres_url) as other:
        name = urlsplit(postgres_url).path[1:]
        await other.execute(f"alter database {name} set default_transaction_read_only = on")

        assert isinstance(await raised(StoreError, lambda: _commit(store)), StoreUnavailable)
        await raised(StoreUnavailable, store.probe)

        await other.execute("set default_transaction_read_only = off")
        await other.execute(f"alter database {name} reset default_transaction_read_only")
        await store.probe()
        while True:
            try:
                assert await _commit(store)
                return
            except StoreUnavailable:
                await asyncio.sleep(0.01)


@asynchronous
async def test_connections_that_are_all_in_use_are_back_pressure(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who comes later waits, and is told after a while that the store is busy; it is nobody's failure."""
    monkeypatch.setattr(sessions, "PATIENCE", NOW - NOW)
    async with opened(postgres_url, lanes=1) as store, store.transaction() as first, store.transaction():
        await first.claim([a_claim(1)], now=NOW)

        error = await raised(StoreUnavailable, lambda: _commit(store, 2))

    assert "in use" in str(error)


@asynchronous
async def test_what_an_error_says_can_always_be_stored(postgres_url: str) -> None:
    """PostgreSQL takes no NUL in a text, and a dead letter must be written whatever its handler said."""
    async with opened(postgres_url) as store:
        await bury(store, replace(a_letter(1), error="a\x00b \ud800", trace="\x00"))

        (letter,) = await store.dead_letters.list()
        assert letter.error == "a\\x00b \\ud800"


@asynchronous
async def test_a_table_that_was_altered_meanwhile_fits_again(postgres_url: str) -> None:
    """Statements are prepared once; a migration of a newer version may change what they were prepared for."""
    async with opened(postgres_url, lanes=1) as store, connected(postgres_url) as other:
        await other.execute("create table orders (id integer)")

        async def insert(value: object) -> None:
            async with store.transaction() as transaction:
                await transaction.connection.execute("insert into orders values ($1)", value)

        await insert(1)
        await other.execute("alter table orders alter column id type text")
        await insert("o-1")

        assert await other.fetch("select id from orders order by id") == [("1",), ("o-1",)]
