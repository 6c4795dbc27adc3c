"""A process that brings another database, or another cluster, would skip or repeat events: it is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from servers.kafka import Kafka
from servers.postgres import Postgres, fresh_database
from tests.crash.harness import Nursery
from tests.faults.chains import Stand, a_stand
from tests.faults.conftest import Recovery

pytestmark = [pytest.mark.local_servers("kafka", "postgres"), pytest.mark.timeout(600)]


def test_a_process_with_another_database_is_refused(
    nursery: Nursery, tmp_path: Path, broker: Kafka, database: Postgres, recovery: Recovery
) -> None:
    """Semantics 11."""
    with a_stand(nursery, tmp_path, broker, database) as stand, fresh_database(database.url) as another:
        stand.start(processes=1)
        with stand.under_load():
            said = refusal(stand, database=another)
            recovery("a process with another database refused", stand.works())
        assert "IdentityError" in said
        assert "has been served from the database" in said
        stand.judged(at_least=20)


def test_a_process_with_another_cluster_is_refused(
    nursery: Nursery, tmp_path: Path, broker: Kafka, database: Postgres, recovery: Recovery
) -> None:
    """Semantics 11: both are named."""
    with a_stand(nursery, tmp_path, broker, database) as stand, Kafka() as another:
        stand.start(processes=1)
        with stand.under_load():
            said = refusal(stand, kafka=another.address())
            recovery("a process with another cluster refused", stand.works())
        assert "IdentityError" in said
        assert "The database belongs to the log" in said
        stand.judged(at_least=20)


def refusal(stand: Stand, **other: str) -> str:
    """What a second process of the first service says before it ends by itself."""
    intruder = stand.chain.start(replace(stand.order("first", 1), **other))  # type: ignore[arg-type] # all are text

    with pytest.raises(AssertionError, match="first-1 ended with"):
        stand.chain.wait_until(lambda: stand.chain.died(intruder), "it is refused")
    return stand.chain.log(intruder)
