"""procrastinate: a job that upserts a row and defers the next one: a chain of two jobs, twenty at a time."""

from __future__ import annotations

import logging
import time

import procrastinate
import psycopg
from psycopg_pool import AsyncConnectionPool

from peers.peer import Peer, read_arguments, run, say

UPSERT = (
    "insert into accounts as a (account, events, last) values (%s, 1, %s) "
    "on conflict (account) do update set events = a.events + 1, last = excluded.last"
)


async def work(peer: Peer) -> None:
    with psycopg.connect(peer.database, autocommit=True) as connection:
        connection.execute("create table if not exists accounts (account text primary key, events int, last int)")
    app = procrastinate.App(connector=procrastinate.PsycopgConnector(conninfo=peer.database, min_size=20, max_size=30))

    async with app.open_async(), AsyncConnectionPool(peer.database, min_size=10, max_size=20, open=False) as pool:

        async def count(account: str, number: int) -> None:
            peer.begin()
            async with pool.connection() as connection:
                await connection.execute(UPSERT, (account, number))

        @app.task(name="second")
        async def second(account: str, number: int) -> None:
            await count(account, number)

        @app.task(name="first")
        async def first(account: str, number: int) -> None:
            await count(account, number)
            await second.defer_async(account=account, number=number)

        await app.schema_manager.apply_schema_async()
        jobs = [{"account": f"account-{number % 1000}", "number": number} for number in range(peer.events // 2)]
        await first.batch_defer_async(*jobs)
        await app.run_worker_async(wait=False, concurrency=20, install_signal_handlers=False)
        say(ended=time.monotonic())


if __name__ == "__main__":
    logging.disable()
    run(work(read_arguments()))
