"""DBOS's two-step workflow on SQLite, in a process of its own:  dbos_process.py FILE WAY COUNT

The steps do nothing at all, and what they return is what DBOS stores. The ways are those of its documentation.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import Callable

from dbos import DBOS

IN_FLIGHT = 10


@DBOS.step()
def first(number: int) -> int:
    return number + 1


@DBOS.step()
def second(number: int) -> int:
    return number + 1


@DBOS.workflow()
def two_steps(number: int) -> int:
    return second(first(number))


@DBOS.step()
async def first_async(number: int) -> int:
    return number + 1


@DBOS.step()
async def second_async(number: int) -> int:
    return number + 1


@DBOS.workflow()
async def two_steps_async(number: int) -> int:
    return await second_async(await first_async(number))


def one_after_another(count: int) -> None:
    """Called like functions; each returns when it is done."""
    for number in range(count):
        two_steps(number)


def in_threads(count: int) -> None:
    """A batch started in the background, then waited for."""
    for handle in [DBOS.start_workflow(two_steps, number) for number in range(count)]:
        handle.get_result()


def async_in_flight(count: int) -> None:
    """Coroutines, some in flight at once: with all at once, they wait for each other's locks."""

    async def run() -> None:
        numbers = iter(range(count))

        async def one_by_one() -> None:
            for number in numbers:
                await two_steps_async(number)

        await asyncio.gather(*(one_by_one() for _ in range(IN_FLIGHT)))

    asyncio.run(run())


def through_a_queue(count: int) -> None:
    """Enqueued, and taken from the queue as fast as it is allowed to look."""
    queue = DBOS.register_queue("benchmark", worker_concurrency=IN_FLIGHT, polling_interval_sec=0.01)
    for handle in [queue.enqueue(two_steps, number) for number in range(count)]:
        handle.get_result()


WAYS: dict[str, Callable[[int], None]] = {
    "one after another": one_after_another,
    "in threads": in_threads,
    "async": async_in_flight,
    "through a queue": through_a_queue,
}


def main() -> None:
    file, way, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
    DBOS(config={"name": "benchmark", "system_database_url": f"sqlite:///{file}", "log_level": "ERROR"})
    DBOS.launch()
    one_after_another(3)
    began, cpu = time.monotonic(), time.process_time()
    WAYS[way](count)
    seconds, cpu = time.monotonic() - began, time.process_time() - cpu
    sys.stdout.write(json.dumps({"seconds": seconds, "cpu": cpu}) + "\n")
    sys.stdout.flush()
    os._exit(0)  # its threads poll for seconds before they notice a shutdown


if __name__ == "__main__":
    main()
