"""Two processes of one service: one dies, or is paused and goes on. The other takes over; the zombie does no harm."""

from __future__ import annotations

import signal

import pytest

from tests.crash import checker
from tests.crash.harness import Chain, Process

SESSION = 1.5
SLACK = 4.5
"""Heartbeats, and a machine that is busy with other things."""
IDLE_TRANSACTION = 5.0


def test_when_one_of_two_is_killed_the_other_takes_over(chain: Chain) -> None:
    ours, other = two_that_share(chain)
    chain.publish(chain.orders(40))
    chain.wait_until(lambda: len(chain.effects("first")) > 10, "both are at work")

    chain.end(ours)
    took = chain.wait_until(lambda: chain.owners("first") == {other.name}, "the other has all partitions")

    # In the embedded log the lock of its sign of life goes with a process: nobody waits until its session is over.
    assert took < (SESSION if chain.ground.sees_deaths else SESSION + SLACK)
    assert checker.check(chain.run_until_drained()) == []


def test_when_one_of_two_is_paused_the_other_takes_over_and_the_zombie_commits_nothing(chain: Chain) -> None:
    """Semantics 14, 15: it is stopped when its first handler has returned, outside of any transaction."""
    ours, other = two_that_share(chain, fault="after handler:1:stop")  # a later one may be inside a transaction
    chain.publish(chain.orders(60))
    chain.wait_until(lambda: chain.stopped(ours), "it has stopped")
    took = chain.wait_until(lambda: chain.owners("first") == {other.name}, "the other has all partitions")
    chain.run_until_drained(spare_faults=True)  # it needs nobody but the other
    before = committed_by(chain, ours)

    chain.signal(ours, signal.SIGCONT)
    chain.wait_until(lambda: chain.owners("first") == {ours.name, other.name}, "they share again")

    # A handler inside a transaction keeps the locks of its partition, until PostgreSQL ends the idle session.
    assert took < SESSION + SLACK + (0 if chain.ground.sees_deaths else IDLE_TRANSACTION)
    assert committed_by(chain, ours) == before
    chain.publish(chain.orders(20))
    assert checker.check(chain.run_until_drained(spare_faults=True)) == []
    assert committed_by(chain, ours) > before


@pytest.mark.parametrize("ground", ["embedded"], indirect=True)
def test_when_one_is_paused_inside_a_transaction_the_other_names_it_and_goes_on_after_it(chain: Chain) -> None:
    """Semantics 16: nobody can take a write lock away from a process, but one can say who has it."""
    ours, other = two_that_share(chain, fault="before commit:3:stop")
    chain.publish(chain.orders(60))
    chain.wait_until(lambda: chain.stopped(ours), "it has stopped")
    chain.wait_until(lambda: f"process {ours.pid} holds its write lock" in chain.log(other), "the holder is named")
    done = len(chain.effects("first"))

    chain.signal(ours, signal.SIGCONT)

    snapshot = chain.run_until_drained(spare_faults=True)
    assert checker.check(snapshot) == []
    assert len(snapshot.tables["first"].effects) > done


@pytest.mark.real_servers
@pytest.mark.parametrize("ground", ["real servers"], indirect=True)
def test_when_one_is_paused_inside_a_transaction_its_locks_are_freed_and_the_other_goes_on(chain: Chain) -> None:
    """Semantics 17: the limits of its session end a transaction in which nothing is said."""
    ours, other = two_that_share(chain, fault="before commit:3:stop")
    chain.publish(chain.orders(60))
    chain.wait_until(lambda: chain.stopped(ours), "it has stopped")
    chain.run_until_drained(spare_faults=True)  # it needs nobody but the other
    assert chain.owners("first") == {other.name}
    before = committed_by(chain, ours)

    chain.signal(ours, signal.SIGCONT)
    chain.wait_until(lambda: chain.owners("first") == {ours.name, other.name}, "they share again")

    assert committed_by(chain, ours) == before
    assert checker.check(chain.run_until_drained(spare_faults=True)) == []


def test_a_relay_that_is_paused_is_relieved_and_what_it_publishes_late_reorders_nothing(chain: Chain) -> None:
    """Semantics 20: it is stopped with records in hand, which another relay publishes before it goes on."""
    chain.publish(chain.orders(60))
    chain.start(chain.order("second"))
    ours = chain.start(chain.order("first", fault="before publish:2:stop"))
    chain.wait_until(lambda: chain.stopped(ours), "it has stopped")
    chain.start(chain.order("first", slot=1))
    chain.run_until_drained(spare_faults=True)
    published = len(chain.snapshot().log)

    chain.signal(ours, signal.SIGCONT)
    chain.wait_until(lambda: len(chain.snapshot().log) > published, "it publishes what is in the log already")

    assert checker.check(chain.run_until_drained(spare_faults=True)) == []


def two_that_share(chain: Chain, *, fault: str = "") -> tuple[Process, Process]:
    """Two processes of the first service that have partitions each, and one of the second service."""
    chain.start(chain.order("second"))
    ours = chain.start(chain.order("first", fault=fault, session_timeout=SESSION))
    other = chain.start(chain.order("first", slot=1, session_timeout=SESSION))
    chain.wait_until(lambda: chain.owners("first") == {ours.name, other.name}, "they share")
    return ours, other


def committed_by(chain: Chain, process: Process) -> int:
    return sum(effect.process == process.name for effect in chain.effects("first"))
