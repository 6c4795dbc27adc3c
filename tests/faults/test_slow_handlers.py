"""A handler takes 40 seconds while everything around it breaks: only its key waits, and its event counts once."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import pytest

from servers.kafka import Kafka
from servers.postgres import Postgres
from tests.crash.checker import SERVICES
from tests.crash.harness import Nursery
from tests.faults.chains import Stand, a_stand
from tests.faults.conftest import Recovery

pytestmark = [pytest.mark.local_servers("kafka", "postgres"), pytest.mark.timeout(900)]

LONG = 40.0
SHORTER = 8.0
PERIOD = 2.0
HELD = ("long-0", "long-1", "long-2")
"""The keys whose events are slow, as a load under way begins with them."""

Fault: TypeAlias = Callable[[Stand, Kafka, Postgres], None]


def members_come_and_go(stand: Stand, broker: Kafka, database: Postgres) -> None:
    third = [stand.chain.start(stand.order(service, 2)) for service in SERVICES]
    for _ in range(3):
        time.sleep(PERIOD)
        for process in third:
            stand.chain.end(process)
            stand.chain.revive(process)
    for process in third:
        stand.chain.end(process)


def the_broker_restarts(stand: Stand, broker: Kafka, database: Postgres) -> None:
    broker.brokers[0].kill()
    broker.brokers[0].start()
    broker.wait_until_ready()


def connections_to_the_broker_break(stand: Stand, broker: Kafka, database: Postgres) -> None:
    proxy = broker.brokers[0].proxy
    assert proxy is not None
    proxy.break_connections()


def postgresql_restarts(stand: Stand, broker: Kafka, database: Postgres) -> None:
    database.kill()
    database.start()


def a_process_of_each_service_is_killed(stand: Stand, broker: Kafka, database: Postgres) -> None:
    for process in stand.chain.processes:
        if process.name.endswith("-0"):
            stand.chain.end(process)
            stand.chain.revive(process)


def a_process_of_each_service_stops_for_a_while(stand: Stand, broker: Kafka, database: Postgres) -> None:
    stopped = [process for process in stand.chain.processes if process.name.endswith("-1")]
    for process in stopped:
        stand.chain.signal(process, signal.SIGSTOP)
    time.sleep(2 * PERIOD)
    for process in stopped:
        stand.chain.signal(process, signal.SIGCONT)


FAULTS: list[Fault] = [
    members_come_and_go,
    the_broker_restarts,
    connections_to_the_broker_break,
    postgresql_restarts,
    a_process_of_each_service_is_killed,
    a_process_of_each_service_stops_for_a_while,
]


@pytest.mark.parametrize(
    ("fault", "long"),
    [
        pytest.param(members_come_and_go, SHORTER),
        *(pytest.param(fault, LONG, marks=pytest.mark.torture) for fault in FAULTS),
    ],
)
def test_a_handler_takes_its_time_through_a_fault(
    nursery: Nursery,
    tmp_path: Path,
    broker: Kafka,
    database: Postgres,
    recovery: Recovery,
    fault: Fault,
    long: float,
) -> None:
    """Semantics 2, 15."""
    with a_stand(nursery, tmp_path, broker, database, long=long) as stand:
        stand.start()
        with stand.under_load():
            if long == LONG:
                assert handled(stand) == set(), "others have gone all the way past them"
            fault(stand, broker, database)
            what = fault.__name__.replace("_", " ")
            recovery(f"{what} while handlers take {long:.0f} s", stand.works())
        stand.judged(at_least=20)
        assert handled(stand) == set(HELD)


@pytest.mark.torture
@pytest.mark.timeout(1800)
def test_a_handler_takes_its_time_through_one_fault_after_the_other(
    nursery: Nursery, tmp_path: Path, broker: Kafka, database: Postgres, recovery: Recovery
) -> None:
    """Each comes while the handlers are at it: again, if the one before has ended them."""
    with a_stand(nursery, tmp_path, broker, database, long=LONG) as stand:
        stand.start()
        with stand.under_load():
            for fault in FAULTS:
                stand.chain.publish([stand.chain.placed(account, "long") for account in HELD])
                fault(stand, broker, database)
                what = fault.__name__.replace("_", " ")
                recovery(f"{what} while handlers take {LONG:.0f} s again and again", stand.works())
        # One after the other of each key, and the last of them was published a moment ago.
        stand.judged(at_least=20, at_most=2 * len(FAULTS) * LONG)
        assert handled(stand) == set(HELD)


def handled(stand: Stand) -> set[str]:
    """The keys of slow events that the slow handler is done with."""
    effects = stand.chain.effects("first")
    return {effect.key for effect in effects if effect.handler == "accept" and effect.key in HELD}
