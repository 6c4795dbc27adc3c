"""The database restarts, breaks off, loses answers and runs full under load: what is committed counts, once."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from servers.kafka import Kafka
from servers.postgres import Postgres
from servers.proxy import Proxy
from tests.crash.checker import SERVICES
from tests.crash.harness import Nursery
from tests.faults.chains import a_stand
from tests.faults.conftest import Recovery

pytestmark = [pytest.mark.local_servers("kafka", "postgres"), pytest.mark.timeout(600)]

GENTLY = ["stopped", "stopped at once"]
ROUNDS = [1, pytest.param(10, marks=pytest.mark.torture)]


@pytest.fixture
def proxy(database: Postgres) -> Iterator[Proxy]:
    with Proxy(database.port) as proxy:
        yield proxy


@pytest.mark.parametrize("rounds", ROUNDS)
@pytest.mark.parametrize("end", [*(pytest.param(end, marks=pytest.mark.torture) for end in GENTLY), "killed"])
def test_the_server_is_restarted(
    nursery: Nursery, tmp_path: Path, broker: Kafka, database: Postgres, recovery: Recovery, end: str, rounds: int
) -> None:
    with a_stand(nursery, tmp_path, broker, database) as stand:
        stand.start()
        with stand.under_load():
            for _ in range(rounds):
                if end == "killed":
                    database.kill()
                else:
                    database.stop(immediate=end == "stopped at once")
                database.start()
                recovery(f"PostgreSQL {end} and started", stand.works())
        stand.judged(at_least=20)


@pytest.mark.parametrize("rounds", [3, pytest.param(50, marks=pytest.mark.torture)])
def test_all_connections_are_terminated_again_and_again(
    nursery: Nursery, tmp_path: Path, broker: Kafka, database: Postgres, recovery: Recovery, rounds: int
) -> None:
    with a_stand(nursery, tmp_path, broker, database) as stand:
        stand.start()
        with stand.under_load():
            for _ in range(rounds):
                for service in SERVICES:
                    stand.ground.execute(
                        service,
                        "select pg_terminate_backend(pid) from pg_stat_activity "
                        "where application_name = 'microflow' and datname = current_database()",
                    )
                recovery("all connections terminated", stand.works())
        stand.judged(at_least=20)


@pytest.mark.parametrize("rounds", [3, pytest.param(50, marks=pytest.mark.torture)])
def test_a_transaction_is_committed_and_the_answer_is_lost(
    nursery: Nursery,
    tmp_path: Path,
    broker: Kafka,
    database: Postgres,
    proxy: Proxy,
    recovery: Recovery,
    rounds: int,
) -> None:
    """It is run again, and its claims say that it was done."""
    with a_stand(nursery, tmp_path, broker, database, postgres_port=proxy.port) as stand:
        stand.start()
        with stand.under_load():
            for turn in range(rounds):
                proxy.lose_answer(b"COMMIT\0", spared=turn % 3)
                assert proxy.wait_for_loss(seconds=20)
                recovery("the answer to a commit lost", stand.works())
        stand.judged(at_least=20)


def test_the_network_is_silent_for_a_while(
    nursery: Nursery, tmp_path: Path, broker: Kafka, database: Postgres, proxy: Proxy, recovery: Recovery
) -> None:
    """Sessions of clients that are not heard any more end, and their locks with them."""
    with a_stand(nursery, tmp_path, broker, database, postgres_port=proxy.port) as stand:
        stand.start()
        with stand.under_load() as load:
            proxy.silence()
            before = load.published
            stand.chain.wait_until(lambda: load.published > before + 100, "orders pile up")
            proxy.heal()
            recovery("the network to PostgreSQL silent for 3 s", stand.works())
        stand.judged(at_least=20)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a disk needs root")
def test_the_disk_runs_full_and_there_is_room_again(
    nursery: Nursery, tmp_path: Path, broker: Kafka, recovery: Recovery
) -> None:
    """Semantics 5: no attempt is spent and nothing becomes a dead letter for want of room."""
    with Postgres(size=300) as server, a_stand(nursery, tmp_path, broker, server) as stand:
        stand.start()
        with stand.under_load() as load:
            server.fill_disk()
            before = load.published
            stand.chain.wait_until(lambda: load.published > before + 100, "orders pile up")
            server.free_disk()
            if not server.running:
                server.start()
            recovery("the disk full for 3 s", stand.works())
        snapshot = stand.judged(at_least=20)
        assert {handler for handler, _ in snapshot.tables["first"].dead} == {"accept"}
        assert snapshot.tables["second"].dead == []
