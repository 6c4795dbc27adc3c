"""faststream-outbox end to end: consume, one transaction for each event with its outbox, relay to Kafka."""

from __future__ import annotations

import logging

from faststream import AckPolicy, FastStream
from faststream.kafka import KafkaBroker, KafkaMessage
from faststream_outbox import OutboxBroker, make_outbox_table
from pydantic import BaseModel
from sqlalchemy import MetaData, text
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine

from peers.peer import Peer, read_arguments, run

QUEUE = "continued"


class Begun(BaseModel):
    account: str
    number: int


async def work(peer: Peer) -> None:
    engine = create_async_engine(peer.database.replace("postgresql://", "postgresql+asyncpg://"))
    metadata = MetaData()
    table = make_outbox_table(metadata, table_name="outbox")
    async with engine.begin() as connection:
        await connection.run_sync(metadata.create_all)
        await connection.execute(text("create table if not exists inbox (id text primary key)"))
        await connection.execute(
            text("create table if not exists accounts (account text primary key, events int, last int)")
        )
    kafka = KafkaBroker(peer.kafka, logger=None, acks="all", enable_idempotence=True)
    outbox = OutboxBroker(engine, outbox_table=table, logger=None)
    sessions = async_sessionmaker(engine, expire_on_commit=False)

    @kafka.subscriber(
        peer.source, group_id=peer.group, auto_offset_reset="earliest", ack_policy=AckPolicy.NACK_ON_ERROR
    )
    async def carry_on(event: Begun, message: KafkaMessage) -> None:
        peer.begin()
        async with sessions() as session, session.begin():
            claimed = await session.execute(
                text("insert into inbox values (:id) on conflict do nothing"), {"id": message.headers["ce_id"]}
            )
            if not claimed.rowcount:
                return
            await session.execute(
                text(
                    "insert into accounts as a (account, events, last) values (:account, 1, :number) "
                    "on conflict (account) do update set events = a.events + 1, last = excluded.last"
                ),
                event.model_dump(),
            )
            await outbox.publish(event.model_dump(), queue=QUEUE, session=session)

    # Its own defaults fetch 10 rows at a time and work on one: these are the fastest of its settings tried here.
    @kafka.publisher(peer.target)
    @outbox.subscriber(
        QUEUE, max_workers=10, fetch_batch_size=100, min_fetch_interval=0.01, terminal_flush_batch_size=50
    )
    async def relay(body: dict) -> dict:
        return body

    await FastStream(outbox, logger=None, on_startup=[kafka.start]).run()


if __name__ == "__main__":
    logging.disable()
    run(work(read_arguments()))
