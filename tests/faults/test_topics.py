"""What happens to topics and groups behind a service's back: its own database knows where it was."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, TypeAlias

import pytest
from aiokafka.client import AIOKafkaClient
from aiokafka.protocol.admin import DeleteGroupsRequest

from servers.kafka import Kafka
from servers.postgres import Postgres
from tests.crash.checker import SERVICES
from tests.crash.harness import Nursery
from tests.crash.load import Load
from tests.crash.readings import PARTITIONS
from tests.faults.chains import SOON, Stand, a_stand
from tests.faults.conftest import Recovery

Absence: TypeAlias = Literal["dead", "paused"]

NON_EMPTY_GROUP = 68
"""Kafka's code for a group that has members."""
TORTURE = pytest.mark.torture
UNNOTICED = 60.0
"""A session that outlasts any pause: the group gives nobody's partitions to others, and nobody joins anew."""
LONGEST_FETCH = 1.0
"""Seconds after which a broker has surely answered a consumer, with nothing if there is nothing."""

pytestmark = [pytest.mark.local_servers("kafka", "postgres"), pytest.mark.timeout(600)]


def test_the_offsets_of_both_groups_are_deleted(
    nursery: Nursery, tmp_path: Path, broker: Kafka, database: Postgres, recovery: Recovery
) -> None:
    """Semantics 13: Kafka's offsets are for those who display lag."""
    with a_stand(nursery, tmp_path, broker, database) as stand:
        stand.start()
        with stand.under_load():
            for process in stand.chain.processes:
                stand.chain.end(process)
            for service in SERVICES:
                asyncio.run(delete_group(broker, f"{stand.ground.prefix}{service}"))
            for process in stand.chain.processes:
                stand.chain.revive(process)
            recovery("all processes killed and all offsets deleted", stand.works())
        stand.judged(at_least=20)
        for service in SERVICES:
            assert "Nothing is lost: reading goes on where the database says" in said_by(stand, service)


def test_partitions_are_added_and_used_once_they_are_switched_to(
    nursery: Nursery, tmp_path: Path, broker: Kafka, database: Postgres, recovery: Recovery
) -> None:
    """Semantics 8. Twice as many: a key stays where it is or moves up, so that the log is in its order throughout."""
    with a_stand(nursery, tmp_path, broker, database) as stand:
        stand.start()
        chain, ground = stand.chain, stand.ground
        writers = [process for process in chain.processes if process.orders.service == "first"]
        new = range(PARTITIONS, 2 * PARTITIONS)
        with stand.under_load(rate=10) as load:
            ground.grow("orders", 2 * PARTITIONS)
            recovery("partitions added", stand.works())
            for process in writers:  # new processes find more partitions than they may use
                chain.end(process)
                chain.revive(process)
            stand.works()
            assert {ground.ends("orders")[number] for number in new} == {0}, "nobody uses them yet"

            refused = command(stand, "topics", "switch", f"{ground.prefix}orders")
            assert refused.returncode != 0
            assert "Stop what writes" in refused.stderr

            before = load.published
            for process in writers:
                chain.end(process)
            with relaying(stand, tmp_path):
                chain.wait_until(lambda: is_switched(stand), "the topic is switched", at_most=SOON)
            assert load.published > before
            for process in writers:
                chain.revive(process)
            recovery("partitions switched to", stand.works())
        stand.judged(at_least=20)
        assert min(ground.ends("orders")[number] for number in new) > 0


@pytest.mark.parametrize("absence", [pytest.param("dead", marks=TORTURE), "paused"])
def test_retention_overtakes_a_reader(
    nursery: Nursery, tmp_path: Path, broker: Kafka, database: Postgres, recovery: Recovery, absence: Absence
) -> None:
    """What was deleted before it was read is told, to the record; everything else is handled."""
    with a_stand(nursery, tmp_path, broker, database) as stand:
        stand.start(session_timeout=UNNOTICED if absence == "paused" else 1.5)
        with stand.under_load() as load:
            with away(stand, load, absence, told="deleted before they were read") as unread:
                ends = stand.ground.delete_records("Placed", unread=unread)
            recovery(f"retention overtook readers that were {absence}", stand.works())
        stand.judged(at_least=20)
        told = said_by(stand, "first")
        for number, end in ends.items():
            begun = unread[number]
            assert (
                f"{end - begun:,} records of {stand.ground.prefix}Placed[{number}] were deleted before they were read, "
                f"{begun:,} to {end - 1:,}: they are lost for this service."
            ) in told


@pytest.mark.parametrize("absence", ["dead", pytest.param("paused", marks=TORTURE)])
def test_a_topic_is_deleted_and_created_again(
    nursery: Nursery, tmp_path: Path, broker: Kafka, database: Postgres, recovery: Recovery, absence: Absence
) -> None:
    """What the old one held unread is told to be gone; the new one is read from its first record."""
    with a_stand(nursery, tmp_path, broker, database) as stand:
        stand.start(session_timeout=UNNOTICED if absence == "paused" else 1.5)
        with stand.under_load() as load:
            with away(stand, load, absence, told="the topic was deleted and created again") as unread:
                stand.ground.create_again("Placed", unread=unread)
                if absence == "dead":
                    # Beyond where the old one had been read: whoever went on from there would pass these over.
                    stand.chain.publish(stand.chain.orders(2 * sum(unread.values()), accounts=50))
            recovery(f"a topic created again while readers were {absence}", stand.works())
        stand.judged(at_least=20)
        told = said_by(stand, "first")
        for number, offset in unread.items():
            name = f"{stand.ground.prefix}Placed[{number}]"
            assert (
                f"{name} is not the one it was: the topic was deleted and created again. "
                f"The old one was read up to {offset:,}, and what it held beyond that is gone"
            ) in told


@contextmanager
def away(stand: Stand, load: Load, absence: Absence, *, told: str) -> Iterator[dict[int, int]]:
    """The first service does not read for a while, and orders pile up; while the block runs, nothing moves. It is
    given from where on each partition of theirs is unread: all before that is handled. Afterwards the service goes on,
    and says of each partition what it has found there."""
    chain = stand.chain
    readers = [process for process in chain.processes if process.orders.service == "first"]
    with load.held():
        chain.wait_until(chain.is_drained, "everything is handled", at_most=SOON)
        for process in readers:
            if absence == "dead":
                chain.end(process)
            else:
                chain.signal(process, signal.SIGSTOP)
        time.sleep(LONGEST_FETCH)  # else what is published next is in the hands of a paused process already
    before = load.published
    chain.wait_until(lambda: load.published > before + 60, "orders pile up", at_most=SOON)
    with load.held():
        tables = chain.snapshot().tables["first"]
        unread = {number: offset for (topic, number), offset in tables.watermarks.items() if topic == "Placed"}
        assert all(stand.ground.ends("Placed")[number] > offset for number, offset in unread.items())
        yield unread
        for process in readers:
            if absence == "dead":
                chain.revive(process)
            else:
                chain.signal(process, signal.SIGCONT)
        chain.wait_until(lambda: said_by(stand, "first").count(told) == PARTITIONS, f"it says {told}", at_most=SOON)


def said_by(stand: Stand, service: str) -> str:
    """The logs of all processes of a service."""
    return "".join(stand.chain.log(each) for each in stand.chain.processes if each.orders.service == service)


# ── what an operator types ────────────────────────────────────────────────────────────────────────────────────────


def is_switched(stand: Stand) -> bool:
    """Try to switch; it is refused until everything is published and read."""
    topic = f"{stand.ground.prefix}orders"
    done = command(stand, "topics", "switch", topic)
    assert done.returncode == 0 or "and try again" in done.stderr, done.stderr
    return done.returncode == 0


def command(stand: Stand, *arguments: str) -> subprocess.CompletedProcess[str]:
    """`microflow …` on the first service's database."""
    return subprocess.run(
        _microflow(arguments), env=_environment(stand), capture_output=True, text=True, check=False, timeout=SOON
    )


@contextmanager
def relaying(stand: Stand, folder: Path) -> Iterator[None]:
    """`microflow relay` publishes what the first service has left in its outbox."""
    with (folder / "relay.log").open("wb") as log:
        process = subprocess.Popen(_microflow(["relay"]), env=_environment(stand), stdout=log, stderr=log)
        try:
            yield
        finally:
            process.terminate()
            process.wait()


def _microflow(arguments: Sequence[str]) -> list[str]:
    return [sys.executable, "-m", "microflow", *arguments]


def _environment(stand: Stand) -> dict[str, str]:
    where = {"MICROFLOW_KAFKA": stand.ground.kafka, "MICROFLOW_DATABASE": stand.ground.databases["first"]}
    return {**os.environ, **where}


async def delete_group(kafka: Kafka, group: str) -> None:
    """As soon as the broker has noticed that its last member is gone."""
    client = AIOKafkaClient(bootstrap_servers=kafka.address())
    await client.bootstrap()
    try:
        async with asyncio.timeout(30):
            while True:
                answer = await client.send(kafka.brokers[0].node, DeleteGroupsRequest([group]))
                [(_, code)] = answer.results
                if code != NON_EMPTY_GROUP:
                    break
                await asyncio.sleep(0.1)
    finally:
        await client.close()
    assert code == 0
