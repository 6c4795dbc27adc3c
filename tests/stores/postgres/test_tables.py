"""Our own tables: made once whoever comes first, refused when they are too new, and told as SQL."""

from __future__ import annotations

import asyncio

from microflow.clocks import SystemClock
from microflow.conformance.stores.examples import a_claim, commit, raised
from microflow.errors import IdentityError
from microflow.stores.postgres import PostgresStore, script
from microflow.stores.postgres.inbox import SQL
from tests.asynchronous import asynchronous
from tests.stores.postgres.opened import connected, opened


@asynchronous
async def test_of_ten_that_start_at_once_each_finds_the_tables(postgres_url: str) -> None:
    """Numbered migrations under an advisory lock."""
    stores = await asyncio.gather(
        *(PostgresStore.open(postgres_url, service="payments", clock=SystemClock()) for _ in range(10))
    )
    try:
        assert [granted for store in stores for granted in await commit(store, [a_claim(1)])].count(True) == 1
    finally:
        await asyncio.gather(*(store.close() for store in stores))


@asynchronous
async def test_a_database_that_needs_a_newer_version_is_refused(postgres_url: str) -> None:
    async with opened(postgres_url):
        pass
    async with connected(postgres_url) as other:
        await other.execute("insert into microflow.schema_versions values (999, '0999_future', 999)")

    error = await raised(IdentityError, lambda: PostgresStore.open(postgres_url, service="a", clock=SystemClock()))

    assert "newer microflow" in str(error)
    assert error.fix == "pip install --upgrade microworkflow"


@asynchronous
async def test_a_newer_database_that_only_has_more_is_used_side_by_side(postgres_url: str) -> None:
    """Old and new version during a rollout: what a newer one has added is none of the older one's business."""
    async with opened(postgres_url):
        pass
    async with connected(postgres_url) as other:
        await other.execute("insert into microflow.schema_versions values (999, '0999_future', 1)")

    async with opened(postgres_url) as store:
        assert list(await commit(store, [a_claim(1)])) == [True]


@asynchronous
async def test_the_sql_that_is_told_makes_what_a_start_makes(postgres_url: str) -> None:
    """For those who run their migrations themselves: it records itself, and a start finds nothing left."""
    async with connected(postgres_url) as other:
        await other.execute(script())
        made = await other.fetchval("select count(*) from microflow.schema_versions")
        async with opened(postgres_url) as store:
            assert list(await commit(store, [a_claim(1)])) == [True]
        assert await other.fetchval("select count(*) from microflow.schema_versions") == made > 0


@asynchronous
async def test_a_table_that_was_empty_when_it_was_first_asked_is_not_read_through(postgres_url: str) -> None:
    """The planner's trap: a plan that was made, and kept, when there was nothing to look through."""
    async with opened(postgres_url) as store, connected(postgres_url) as other:
        await other.execute("vacuum analyze microflow.inbox")
        await commit(store, [a_claim(1)])
        for _ in range(8):
            await store.inbox.seen([a_claim(1).key, a_claim(2).key])
        handler = await other.fetchval("select id from microflow.handlers")
        await other.execute(
            """insert into microflow.inbox (handler, digest, status, content, partition, "offset", completed_at)
            select $1, decode(md5(n::text), 'hex'), 0, '', 1, n, now() from generate_series(1, 20000) as n""",
            handler,
        )
        (session, *_) = store._reading._idle
        name = (await session.prepared(SQL["seen"])).get_name()
        plan = str(await session.raw.fetch(f"explain execute {name}('shop', '{{1}}', '{{a}}')"))

        assert "Index Scan using inbox_pkey" in plan
        assert "Seq Scan" not in plan
