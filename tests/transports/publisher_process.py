"""A publisher in a process of its own: opens the log as soon as it is told to, publishes, prints the cluster id."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from microflow.clocks import SystemClock
from microflow.ports import Record
from microflow.transports.local import LocalTransport


async def main(path: Path, name: str, batches: int) -> None:
    transport = LocalTransport.open(path, clock=SystemClock())
    for batch in range(batches):
        records = [Record("topic", index % 3, None, f"{name}:{batch * 9 + index}".encode()) for index in range(9)]
        assert not any(await transport.publish(records))
    print(await transport.topics.cluster_id())  # noqa: T201 - this is how it talks to the test
    await transport.close()


if __name__ == "__main__":
    print("ready", flush=True)  # noqa: T201
    sys.stdin.readline()
    asyncio.run(main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])))
