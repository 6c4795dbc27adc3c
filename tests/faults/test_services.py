"""Processes of a service die and are stopped under load: the others take over, nobody does anything twice."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from servers.kafka import Kafka
from servers.postgres import Postgres
from tests.crash.harness import Nursery
from tests.faults.chains import a_stand
from tests.faults.conftest import Recovery

pytestmark = [pytest.mark.local_servers("kafka", "postgres"), pytest.mark.timeout(600)]

ROUNDS = [1, pytest.param(10, marks=pytest.mark.torture)]


@pytest.mark.parametrize("rounds", ROUNDS)
def test_a_process_of_each_service_is_killed_and_the_other_one_takes_over(
    nursery: Nursery, tmp_path: Path, broker: Kafka, database: Postgres, recovery: Recovery, rounds: int
) -> None:
    with a_stand(nursery, tmp_path, broker, database) as stand:
        stand.start()
        with stand.under_load():
            for turn in range(rounds):
                killed = [process for process in stand.chain.processes if process.name.endswith(f"-{turn % 2}")]
                for process in killed:
                    stand.chain.end(process)
                recovery("a process of each service killed", stand.works())
                for process in killed:
                    stand.chain.revive(process)
                stand.works()
        stand.judged(at_least=20)


@pytest.mark.parametrize("rounds", ROUNDS)
def test_a_process_of_each_service_is_stopped_and_does_no_harm_when_it_goes_on(
    nursery: Nursery, tmp_path: Path, broker: Kafka, database: Postgres, recovery: Recovery, rounds: int
) -> None:
    """Semantics 14, 15."""
    with a_stand(nursery, tmp_path, broker, database) as stand:
        stand.start()
        with stand.under_load():
            for turn in range(rounds):
                stopped = [process for process in stand.chain.processes if process.name.endswith(f"-{turn % 2}")]
                for process in stopped:
                    stand.chain.signal(process, signal.SIGSTOP)
                recovery("a process of each service stopped", stand.works())
                for process in stopped:
                    stand.chain.signal(process, signal.SIGCONT)
                stand.works()
        stand.judged(at_least=20)
