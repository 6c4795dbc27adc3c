"""Members come and go all the time: no handler is cancelled for it, and nobody's work is done twice."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from servers.kafka import Kafka
from servers.postgres import Postgres
from tests.crash.checker import SERVICES
from tests.crash.harness import Nursery
from tests.faults.chains import a_stand
from tests.faults.conftest import Recovery

pytestmark = [pytest.mark.local_servers("kafka", "postgres"), pytest.mark.timeout(900)]

PERIOD = 2.0


@pytest.mark.parametrize("seconds", [10, pytest.param(180, marks=pytest.mark.torture)])
def test_a_rebalance_every_two_seconds(
    nursery: Nursery, tmp_path: Path, broker: Kafka, database: Postgres, recovery: Recovery, seconds: int
) -> None:
    """Semantics 13, 15: a third process of each service joins, and is gone two seconds later, and so on."""
    with a_stand(nursery, tmp_path, broker, database) as stand:
        stand.start()
        chain = stand.chain
        with stand.under_load():
            third = [chain.start(stand.order(service, 2)) for service in SERVICES]
            begun = time.monotonic()
            while time.monotonic() - begun < seconds:
                time.sleep(PERIOD)
                for service, process in zip(SERVICES, third, strict=True):
                    if process.ended:
                        chain.revive(process)
                    elif not chain.has_to_spare(service):  # rule 6: else its events would be given up, rightly
                        chain.end(process)
            recovery(f"a rebalance every {PERIOD:.0f} s for {seconds} s", stand.works())
        stand.judged(at_least=20)
