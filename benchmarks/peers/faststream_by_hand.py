"""FastStream with inbox, state and outbox written by hand: a transaction for each event, and a relay beside it."""

from __future__ import annotations

import asyncio
import json
import logging

import asyncpg
from faststream import AckPolicy, FastStream
from faststream.kafka import KafkaBroker, KafkaMessage
from pydantic import BaseModel

from peers.peer import Peer, read_arguments, run

TABLES = """
create table if not exists inbox (id text primary key);
create table if not exists accounts (account text primary key, events int not null, last int not null);
create table if not exists outbox (id bigserial primary key, key text not null, body text not null);
"""
UPSERT = (
    "insert into accounts as a (account, events, last) values ($1, 1, $2) "
    "on conflict (account) do update set events = a.events + 1, last = excluded.last"
)


class Begun(BaseModel):
    account: str
    number: int


async def work(peer: Peer) -> None:
    pool = await asyncpg.create_pool(peer.database, min_size=3, max_size=3)
    await pool.execute(TABLES)
    broker = KafkaBroker(peer.kafka, logger=None, acks="all", enable_idempotence=True)
    committed = asyncio.Event()

    @broker.subscriber(
        peer.source, group_id=peer.group, auto_offset_reset="earliest", ack_policy=AckPolicy.NACK_ON_ERROR
    )
    async def carry_on(event: Begun, message: KafkaMessage) -> None:
        peer.begin()
        async with pool.acquire() as connection, connection.transaction():
            identifier = message.headers["ce_id"]
            if not await connection.fetchval(
                "insert into inbox values ($1) on conflict do nothing returning 1", identifier
            ):
                return
            await connection.execute(UPSERT, event.account, event.number)
            await connection.execute(
                "insert into outbox (key, body) values ($1, $2)", event.account, json.dumps(event.model_dump())
            )
        committed.set()

    async def relay() -> None:
        while True:
            await committed.wait()
            committed.clear()
            while rows := await pool.fetch("select id, key, body from outbox order by id limit 500"):
                sent = [
                    await broker.publish(row["body"].encode(), peer.target, key=row["key"].encode(), no_confirm=True)
                    for row in rows
                ]
                await asyncio.gather(*sent)
                await pool.execute("delete from outbox where id = any($1)", [row["id"] for row in rows])

    relaying = asyncio.create_task(relay())
    await FastStream(broker, logger=None).run()
    relaying.cancel()


if __name__ == "__main__":
    logging.disable()
    run(work(read_arguments()))
