"""Crash anywhere: whatever a process is doing when it is killed, nothing is lost, nothing happens twice, the order of
each key is kept, and everything drains without an operator."""

from __future__ import annotations

import random
from typing import get_args

import pytest

from microflow.faults import FaultPoint
from tests.crash import checker
from tests.crash.harness import Chain, times_reached

POINTS: tuple[FaultPoint, ...] = get_args(FaultPoint)
REBALANCE = ("before revoke", "after revoke")
SEEDS = [
    ("embedded", 0),
    ("embedded", 1),
    pytest.param("real servers", 0, marks=[pytest.mark.real_servers, pytest.mark.torture]),
]


def test_without_faults_the_chain_keeps_every_promise(chain: Chain) -> None:
    chain.publish(chain.orders(40))
    for service in checker.SERVICES:
        chain.start(chain.order(service))

    snapshot = chain.run_until_drained()

    assert checker.check(snapshot) == []
    assert chain.kills == 0
    assert {handler for handler, _ in snapshot.tables["first"].dead} == {"accept"}


@pytest.mark.parametrize(("ground", "seed"), SEEDS, indirect=["ground"])
@pytest.mark.parametrize("point", POINTS)
def test_a_process_killed_at_any_point_breaks_no_promise(chain: Chain, point: FaultPoint, seed: int) -> None:
    """Both services die there, each once."""
    chance = random.Random(f"{point} {seed}")
    chain.publish(chain.orders(30))
    for service in checker.SERVICES:
        chain.start(chain.order(service, fault=f"{point}:{chance.randint(1, times_reached(point))}", batch=4))
    if point in REBALANCE:
        chain.wait_until(chain.has_joined, "both services have their partitions")
        for service in checker.SERVICES:
            chain.start(chain.order(service, slot=1))
    chain.publish(chain.orders(10))
    if "watermark" in point:
        chain.run_until_drained(spare_faults=True)
        chain.publish(chain.strange())

    snapshot = chain.run_until_drained()

    assert checker.check(snapshot) == []
    assert chain.kills == 2
