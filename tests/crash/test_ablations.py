"""The harness sees what it claims to see: with any one of the things that carry the promises taken out, the same
schedule that is green otherwise goes red, and for the right reason."""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import TypeAlias

import pytest

from tests.crash import checker
from tests.crash.checker import Invariant
from tests.crash.harness import Chain
from tests.crash.orders import Ablation
from tests.crash.readings import Snapshot

Schedule: TypeAlias = Callable[[Chain, Ablation], Snapshot]
INTACT: Ablation = ""


def published_twice(chain: Chain, ablation: Ablation) -> Snapshot:
    """The first service dies between publishing and deleting, and publishes again what the second has handled."""
    chain.publish([chain.placed("anna") for _ in range(3)])
    first = chain.start(chain.order("first", fault="after publish:1", batch=100))
    chain.start(chain.order("second", ablation=ablation))
    chain.wait_until(lambda: chain.died(first), "the first service dies")
    chain.wait_until(lambda: len(chain.effects("second")) > 0, "the second service has handled what came")
    chain.revive(first)
    return chain.run_until_drained()


def killed_after_a_commit(chain: Chain, ablation: Ablation) -> Snapshot:
    """The first service dies between its second commit and whatever it would do next."""
    chain.publish([chain.placed(account) for account in ("anna", "bert", "cleo")])
    chain.start(chain.order("first", ablation=ablation, fault="after commit:2", batch=1))
    chain.start(chain.order("second"))
    return chain.run_until_drained()


def taken_over_in_a_handler(chain: Chain, ablation: Ablation) -> Snapshot:
    """A process is stopped when it is about to commit; another one takes over, and is about to handle the same event
    when the first one goes on."""
    chain.publish([chain.placed("anna", "slow")])
    chain.start(chain.order("second"))
    zombie = chain.start(chain.order("first", ablation=ablation, fault="before transaction:1:stop"))
    chain.wait_until(lambda: chain.stopped(zombie), "the first process has stopped")
    successor = chain.start(chain.order("first", slot=1, gate=True))
    chain.wait_until(lambda: len(chain.executions()) == 2, "the second process handles the event")
    chain.signal(zombie, signal.SIGCONT)
    chain.wait_until(lambda: bool(chain.effects("first")) or zombie.name in chain.owners("first"), "it went on")
    (chain.folder / "gate").touch()
    assert not successor.ended
    return chain.run_until_drained(spare_faults=True)


def killed_while_one_is_slow(chain: Chain, ablation: Ablation) -> Snapshot:
    """An event is slow, those behind it in its partition are not; the process dies when they are committed."""
    slow, fast = "account-0", "account-4"  # in one partition, and in different lanes
    chain.publish([chain.placed(slow, "slow"), *(chain.placed(fast) for _ in range(5))])
    chain.start(chain.order("second"))
    first = chain.start(chain.order("first", ablation=ablation, lanes=2, gate=True))
    chain.wait_until(lambda: len(chain.effects("first")) == 10, "the fast events are committed")
    chain.end(first)
    (chain.folder / "gate").touch()
    chain.revive(first)
    return chain.run_until_drained()


def refused_once(chain: Chain, ablation: Ablation) -> Snapshot:
    """The log refuses the second of six events of one key, once, when all of them wait in the outbox."""
    chain.start(chain.order("second"))
    chain.start(chain.order("first", ablation=ablation, refusal=2, publishes=1, scans_only=True))
    chain.wait_until(chain.has_joined, "the services have their partitions")
    chain.ground.hold_relay("first")
    chain.publish([chain.placed("anna") for _ in range(3)])
    chain.wait_until(lambda: len(chain.effects("first")) == 6, "all is committed")
    chain.ground.let_relay_go("first")
    return chain.run_until_drained()


SCHEDULES: list[tuple[Ablation, Schedule, set[Invariant]]] = [
    ("no inbox", published_twice, {"twice"}),
    ("outbox outside the transaction", killed_after_a_commit, {"effect without its record"}),
    ("no fence", taken_over_in_a_handler, {"old epoch"}),
    ("offsets by a lane's own maximum", killed_while_one_is_slow, {"lost"}),
    ("relay without order", refused_once, {"records out of order"}),
]


@pytest.mark.parametrize(("ablation", "schedule", "broken"), SCHEDULES)
def test_without_it_the_promise_is_broken(
    chain: Chain, ablation: Ablation, schedule: Schedule, broken: set[Invariant]
) -> None:
    assert {each.invariant for each in checker.check(schedule(chain, ablation))} == broken


@pytest.mark.parametrize(("ablation", "schedule", "broken"), SCHEDULES)
def test_with_it_the_same_schedule_breaks_nothing(
    chain: Chain, ablation: Ablation, schedule: Schedule, broken: set[Invariant]
) -> None:
    assert checker.check(schedule(chain, INTACT)) == []
