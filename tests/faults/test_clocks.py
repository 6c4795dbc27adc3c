"""Clocks of machines step under load: time is the database's, so nobody waits for an hour that has been already."""

from __future__ import annotations

import signal
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from servers.kafka import Kafka
from servers.postgres import Postgres
from tests.crash.harness import Nursery
from tests.faults.chains import SOON, Stand, a_stand
from tests.faults.conftest import Recovery

HOUR = 3600

pytestmark = [pytest.mark.local_servers("kafka", "postgres"), pytest.mark.timeout(600)]


def test_the_clocks_of_machines_step_by_hours(
    nursery: Nursery, tmp_path: Path, broker: Kafka, database: Postgres, recovery: Recovery
) -> None:
    """What was parked on machines that are an hour ahead is due in a moment on ones that are an hour behind, too."""
    with a_stand(nursery, tmp_path, broker, database) as stand:
        stand.start(clock_steps=True)
        with stand.under_load():
            set_clocks(stand, {0: HOUR, 1: -HOUR})
            recovery("clocks set an hour ahead and an hour behind", stand.works())
            set_clocks(stand, {0: HOUR, 1: HOUR})
            stand.chain.wait_until(lambda: stepped_back(stand), "some wait for their next attempt", at_most=SOON)
            recovery("clocks set back by two hours", stand.works())
        stand.judged(at_least=20)


def stepped_back(stand: Stand) -> bool:
    """Set all clocks back while events of the first service are parked, if there are any this moment."""
    chain = stand.chain
    # Most of them succeed, so that no handler takes a rest.
    chain.publish(
        [chain.placed(f"{kind}-{time.monotonic_ns()}", kind) for kind in ("flaky", "plain", "plain", "flaky")]
    )
    processes = [process for process in chain.processes if process.orders.service == "first"]
    for process in processes:
        chain.signal(process, signal.SIGSTOP)
    parked = int(stand.ground.ask("first", "select count(*) from microflow.parked"))
    if parked:
        set_clocks(stand, {0: -HOUR, 1: -HOUR})
    for process in processes:
        chain.signal(process, signal.SIGCONT)
    return bool(parked)


def set_clocks(stand: Stand, ahead: Mapping[int, int]) -> None:
    """From now on the machines of these slots are so many seconds ahead."""
    for process in stand.chain.processes:
        file = stand.chain.folder / f"clock-{process.name}"
        new = file.with_suffix(".new")
        new.write_text(str(ahead[int(process.name[-1])]), encoding="utf-8")
        new.replace(file)
