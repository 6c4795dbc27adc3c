"""A member of a consumer group in a process of its own: prints what it is told and what it fetches, as JSON lines."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from datetime import timedelta
from pathlib import Path

from microflow.clocks import SystemClock
from microflow.errors import TransportError
from microflow.ports import Subscription, TopicPartition
from microflow.transports.local import LocalTransport


class Printing:
    """A listener that seeks the beginning, and commits when it has to give its partitions up."""

    subscription: Subscription

    async def revoked(self, partitions: frozenset[TopicPartition]) -> None:
        tell(told="revoked", partitions=sorted(each.partition for each in partitions))
        try:
            await self.subscription.commit(dict.fromkeys(partitions, 1), metadata="")
            tell(committed=True)
        except TransportError:
            tell(committed=False)

    async def assigned(self, partitions: frozenset[TopicPartition]) -> None:
        for partition in partitions:
            self.subscription.seek(partition, 0)
        tell(told="assigned", partitions=sorted(each.partition for each in partitions))


def tell(**what: object) -> None:
    print(json.dumps(what | {"at": time.monotonic()}), flush=True)  # noqa: T201 - this is how it talks to the test


async def main(path: Path, session: timedelta) -> None:
    listener = Printing()
    transport = LocalTransport.open(
        path, clock=SystemClock(), session_timeout=session, heartbeat=timedelta(milliseconds=100)
    )
    async with transport.subscribe(["topic"], group="group", listener=listener) as subscription:
        listener.subscription = subscription
        while True:
            if records := await subscription.fetch(max_records=500, wait=timedelta(seconds=1)):
                tell(fetched=[(record.value or b"").decode() for record in records])


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), timedelta(seconds=float(sys.argv[2]))))
