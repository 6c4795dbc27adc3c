"""FastStream without a database: `default` may lose events, `at-least-once` may not, `batch` takes 500 at once."""

from __future__ import annotations

import logging

from faststream import AckPolicy, FastStream
from faststream.kafka import KafkaBroker
from pydantic import BaseModel

from peers.peer import Peer, read_arguments, run


class Begun(BaseModel):
    account: str
    number: int


class Continued(BaseModel):
    account: str
    number: int


def application(peer: Peer) -> FastStream:
    if peer.variant == "default":
        broker = KafkaBroker(peer.kafka, logger=None)
        subscriber = broker.subscriber(peer.source, group_id=peer.group, auto_offset_reset="earliest")
        publisher = broker.publisher(peer.target)
    else:
        batch = peer.variant == "batch"
        # Five hundred events do not fit into a batch of the default size, and are refused together.
        size = {"max_batch_size": 1_048_576} if batch else {}
        broker = KafkaBroker(peer.kafka, logger=None, acks="all", enable_idempotence=True, **size)
        subscriber = broker.subscriber(
            peer.source,
            group_id=peer.group,
            auto_offset_reset="earliest",
            ack_policy=AckPolicy.NACK_ON_ERROR,
            batch=batch,
            max_records=500 if batch else None,
        )
        publisher = broker.publisher(peer.target, batch=batch)

    if peer.variant == "batch":

        @subscriber
        @publisher
        async def carry_all_on(events: list[Begun]) -> list[Continued]:
            peer.begin()
            return [Continued(account=each.account, number=each.number) for each in events]

    else:

        @subscriber
        @publisher
        async def carry_on(event: Begun) -> Continued:
            peer.begin()
            return Continued(account=event.account, number=event.number)

    return FastStream(broker, logger=None)


if __name__ == "__main__":
    logging.disable()
    run(application(read_arguments()).run())
