"""The floor: consume, decode, encode and produce with aiokafka in batches. No database, no guarantees but the log's."""

from __future__ import annotations

import json

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer

from peers.peer import Peer, read_arguments, run


async def work(peer: Peer) -> None:
    consumer = AIOKafkaConsumer(
        peer.source,
        bootstrap_servers=peer.kafka,
        group_id=peer.group,
        enable_auto_commit=False,
        auto_offset_reset="earliest",
    )
    producer = AIOKafkaProducer(bootstrap_servers=peer.kafka, acks="all", enable_idempotence=True)
    async with consumer, producer:
        while True:
            batches = await consumer.getmany(timeout_ms=200, max_records=500)
            for source, records in batches.items():
                peer.begin()
                builder, sent = producer.create_batch(), []
                for record in records:
                    event = json.loads(record.value)
                    value = json.dumps({"account": event["account"], "number": event["number"]}).encode()
                    if builder.append(key=record.key, value=value, timestamp=None) is None:
                        sent.append(await producer.send_batch(builder, peer.target, partition=source.partition))
                        builder = producer.create_batch()
                        builder.append(key=record.key, value=value, timestamp=None)
                sent.append(await producer.send_batch(builder, peer.target, partition=source.partition))
                for each in sent:
                    await each
            if batches:
                await consumer.commit()


if __name__ == "__main__":
    run(work(read_arguments()))
