"""Relays are stopped with records in hand and go on when others have published them: late, twice, out of order."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from pathlib import Path

import pytest

from servers.kafka import Kafka
from servers.postgres import Postgres
from tests.crash.checker import SERVICES
from tests.crash.harness import Nursery
from tests.crash.readings import Logged
from tests.faults.chains import SOON, Stand, a_stand
from tests.faults.conftest import Recovery

pytestmark = [pytest.mark.local_servers("kafka", "postgres"), pytest.mark.timeout(600)]

NOW = "select clock_timestamp()::text"
ROUNDS = [1, pytest.param(10, marks=pytest.mark.torture)]


@pytest.mark.parametrize("rounds", ROUNDS)
def test_a_relay_of_each_service_is_a_zombie_that_repeats_and_reorders(
    nursery: Nursery, tmp_path: Path, broker: Kafka, database: Postgres, recovery: Recovery, rounds: int
) -> None:
    """Semantics 20: first occurrences keep the order of the commits, and whoever reads takes each event once."""
    with a_stand(nursery, tmp_path, broker, database) as stand:
        stand.start()
        chain = stand.chain
        with stand.under_load():
            for turn in range(rounds):
                zombies = [process for process in chain.processes if process.name.endswith(f"-{turn % 2}")]
                for process in zombies:
                    chain.end(process)
                    process.faults.append("before publish:20:stop")
                    chain.revive(process)
                for process in zombies:
                    chain.wait_until(lambda: chain.stopped(process), "it has records in hand", at_most=SOON)  # noqa: B023
                stopped_at = {
                    service: stand.ground.ask(service, "select clock_timestamp()::text") for service in SERVICES
                }
                recovery("a relay of each service stopped with records in hand", stand.works())
                for service in SERVICES:
                    chain.wait_until(
                        lambda: not stand.ground.ask(service, waits_since(stopped_at[service])),  # noqa: B023
                        f"others have published what the zombie of {service} has in hand",
                        at_most=SOON,
                    )
                before = {service: len(late(stand, service)) for service in SERVICES}

                for process in zombies:
                    chain.signal(process, signal.SIGCONT)
                for service in SERVICES:
                    chain.wait_until(
                        lambda: len(late(stand, service)) > before[service],  # noqa: B023
                        f"a zombie of {service} publishes what is in the log already, behind what came later",
                        at_most=SOON,
                    )
                recovery("zombie relays of each service repeated and reordered records", stand.works())
        stand.judged(at_least=20)


def waits_since(instant: str) -> str:
    """The question whether anything is in an outbox that was there at an instant."""
    return f"select exists (select 1 from microflow.outbox where created_at < '{instant}')"


def late(stand: Stand, service: str) -> Sequence[Logged]:
    """The records of a service that are in the log for the second time, behind later ones of their key."""
    first: dict[str, int] = {}
    latest: dict[tuple[str, str], int] = {}
    found = []
    for rank, record in enumerate(stand.chain.snapshot().log):
        if record.source != f"/services/{service}":
            continue
        key = record.topic, record.key
        if record.id not in first:
            first[record.id] = latest[key] = rank
        elif latest[key] > first[record.id]:
            found.append(record)
    return found
