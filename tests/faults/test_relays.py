"""Relays are stopped with records in hand and go on when others have published them: late, twice, out of order."""

from __future__ import annotations

import signal
from collections import Counter
from pathlib import Path

import pytest

from servers.kafka import Kafka
from servers.postgres import Postgres
from tests.crash.checker import SERVICES
from tests.crash.harness import Nursery
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
    # What one has in hand may be a copy of a dead letter and nothing else, and nobody would see that twice.
    with a_stand(nursery, tmp_path, broker, database, copies=False) as stand:
        stand.start(patience=5 * SOON)  # else one that is stopped for long gives up what it has in hand
        chain = stand.chain
        with stand.under_load():
            for turn in range(rounds):
                zombies = [process for process in chain.processes if process.name.endswith(f"-{turn % 2}")]
                for process in zombies:
                    chain.end(process)
                    process.faults.append("before publish:3:stop")
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
                then = lengths(stand)
                chain.wait_until(
                    lambda: all(length > then[account] for account, length in lengths(stand).items()),  # noqa: B023
                    "what came later has been published",
                    at_most=SOON,
                )
                repeated, late = repetitions(stand)

                for process in zombies:
                    chain.signal(process, signal.SIGCONT)
                chain.wait_until(
                    lambda: all(repetitions(stand)[0][service] > repeated[service] for service in SERVICES),  # noqa: B023
                    "each zombie publishes what is in the log already",
                    at_most=SOON,
                )
                # Not each: what one has in hand may be all that its key ever got.
                chain.wait_until(
                    lambda: repetitions(stand)[1] > late,  # noqa: B023
                    "a zombie publishes something behind what came later",
                    at_most=SOON,
                )
                recovery("zombie relays of each service repeated and reordered records", stand.works())
        stand.judged(at_least=20)


def waits_since(instant: str) -> str:
    """The question whether anything is in an outbox that was there at an instant."""
    return f"select exists (select 1 from microflow.outbox where created_at < '{instant}')"


def lengths(stand: Stand) -> Counter[tuple[str, str]]:
    """How many records of each account are in the log, by topic; only those of the load, to which more is added."""
    return Counter((each.topic, each.key) for each in stand.chain.snapshot().log if each.key.startswith("account-"))


def repetitions(stand: Stand) -> tuple[Counter[str], int]:
    """How many records of each service are in the log for the second time, and how many of all these are behind later
    ones of their key."""
    first: dict[str, int] = {}
    latest: dict[tuple[str, str], int] = {}
    repeated: Counter[str] = Counter()
    late = 0
    for rank, record in enumerate(stand.chain.snapshot().log):
        key = record.topic, record.key
        if record.id not in first:
            first[record.id] = latest[key] = rank
        else:
            repeated[record.source.removeprefix("/services/")] += 1
            late += latest[key] > first[record.id]
    return repeated, late
