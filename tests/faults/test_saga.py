"""The order saga's money test on Kafka and PostgreSQL: five services, two processes each, as `microflow run` runs them,
and somebody who kills and stops them at random."""

from __future__ import annotations

import asyncio
import time
from itertools import islice
from pathlib import Path
from random import Random

import pytest

from examples.order_saga import placing
from examples.order_saga.tests.saga import audit, mixed
from tests.faults import saga_log
from tests.faults.conftest import Recovery
from tests.faults.saga_processes import POLL, SOON, SagaProcesses, a_saga
from tests.faults.saga_stage import RealStage, saga_on

pytestmark = [pytest.mark.local_servers("kafka", "postgres"), pytest.mark.timeout(600)]

AT_ONCE = 20
ENDS = {"completed": "OrderCompleted", "cancelled": "OrderCancelled", "rejected": "OrderRejected"}


@pytest.mark.parametrize(
    ("count", "rate", "every", "seed"),
    [
        pytest.param(100, 10.0, 1.5, 1, id="100 orders"),
        *(
            pytest.param(
                count,
                rate,
                2.0,
                seed,
                id=f"{count} orders, seed {seed}",
                marks=[pytest.mark.torture, pytest.mark.timeout(3600)],
            )
            for count, rate, seed in [(2000, 20.0, 1), (2000, 10.0, 2), (5000, 30.0, 3)]
        ),
    ],
)
def test_every_order_ends_once_and_the_money_adds_up_while_processes_die_and_stop(
    tmp_path: Path, recovery: Recovery, count: int, rate: float, every: float, seed: int
) -> None:
    """So many orders, `rate` a second, and a fault about `every` so many seconds until the last one is placed."""
    with a_saga(tmp_path, lost_answers=0.1) as processes:
        processes.start()
        saga, chance = saga_on(RealStage(processes)), Random(seed)
        orders = list(islice(placing.orders(seed), count))
        begun = time.monotonic()
        placed = place(processes, orders, chance, rate=rate, every=every)
        rested = processes.come_to_rest(at_most=max(SOON, count / 10))
        took = time.monotonic() - begun
        faults = f"{processes.faults.total() - processes.faults['spared']} faults"
        recovery(f"order saga, {count} orders, {faults}, after the last of them all at rest", rested)
        recovery(f"order saga, {count} orders, {faults}, from the first order until all at rest", took)

        log = processes.ground.log()
        assert saga_log.broken(log, placed=placed) == []
        ends = asyncio.run(audit(saga))
        assert ends.total() == count
        books = {
            row["order_id"]: ENDS[row["ending"]] for row in processes.ground.fetch("orders", "select * from endings")
        }
        assert saga_log.ends_in(log) == books
        for order in orders:
            assert order.ending in (None, books[order.order_id])
        assert min(ends["completed"], ends["cancelled"], ends["rejected"]) >= count // 20
        assert processes.faults.keys() >= {"killed", "stopped"}, "little was broken"


def place(
    processes: SagaProcesses, orders: list[placing.Order], chance: Random, *, rate: float, every: float
) -> set[str]:
    """Publish what the customers do while processes die; return the ids."""
    ids = set()
    next_fault = time.monotonic() + every
    next_order = time.monotonic()
    for first in range(0, len(orders), AT_ONCE):
        if first == AT_ONCE * 3:
            processes.ground.repeat()  # without an inbox, letters would be written twice
        wave = orders[first : first + AT_ONCE]
        publications = mixed(wave, chance)
        for event, flow, identifier in publications:
            ids.add(processes.ground.publish(event, flow=flow, identifier=identifier))
            next_order += len(wave) / rate / len(publications)
            while True:
                processes.keep()
                if time.monotonic() >= next_fault:
                    processes.disturb(chance)
                    next_fault = time.monotonic() + every * chance.uniform(0.5, 1.5)
                if time.monotonic() >= next_order:
                    break
                time.sleep(POLL)
    return ids
