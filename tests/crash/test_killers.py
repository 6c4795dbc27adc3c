"""Semantics 6: an event that ends its process, by a signal or a crash in a C library, becomes a dead letter; all the
others are handled, once and in order."""

from __future__ import annotations

import random
import signal
import sqlite3
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from microflow.clocks import SystemClock
from microflow.envelopes import seal_root
from microflow.events import Event
from microflow.partitioner import Partitioner
from microflow.ports import Record
from tests.crash.harness import Chain, Nursery
from tests.crash.readings import PARTITIONS

ACCOUNTS = 12


class Fed(Event, key="account"):
    account: str
    kind: str


class Weighed(Event, key="account"):
    account: str
    kind: str


@dataclass(slots=True)
class Feeding:
    """The service `fed`, whose processes are started again whenever they die."""

    chain: Chain
    left_in_hand: list[list[tuple[Any, ...]]] = field(default_factory=list)
    """The marks that were there after each death."""

    def records(
        self, count: int, killers: Mapping[int, str] | None = None, *, kind: type[Fed] | type[Weighed] = Fed
    ) -> list[Record]:
        """So many events of one type; `killers` are those that kill, and how."""
        kinds = killers or {}
        chance = random.Random(count)
        records = []
        for place in range(count):
            event = kind(account=f"account-{place % ACCOUNTS}", kind=kinds.get(place, "plain"))
            sealed = seal_root(
                event,
                service="zoo",
                topic=kind.__name__,
                now=SystemClock().now(),
                random_bits=chance.getrandbits,
            )
            assert sealed.key is not None
            partition = Partitioner().partition(sealed.key, partitions=PARTITIONS)
            records.append(Record(sealed.topic, partition, sealed.key, sealed.value, sealed.headers))
        return records

    def run_until_all_is_handled(self, records: Sequence[Record], *, processes: int = 1, fault: str = "") -> None:
        self.chain.publish(records)
        for slot in range(processes):
            self.chain.start(
                self.chain.order("fed", slot, fault=fault, batch=6 if fault else 100), then=[fault] * 5 if fault else ()
            )
        self.go_on_until_drained(len(records))

    def go_on_until_drained(self, count: int) -> None:
        def drained() -> bool:
            for process in self.chain.reap():
                self.left_in_hand.append(self.rows('select number, "offset" from microflow_suspects where in_hand'))
                self.chain.revive(process)
            armed = any(process.orders.fault for process in self.chain.processes)
            return not armed and self._is_drained(count)

        self.chain.wait_until(drained, "everything is handled", at_most=60)

    def _is_drained(self, count: int) -> bool:
        try:
            (passed,) = self.rows("select coalesce(sum(watermark), 0) from microflow_partitions")[0]
            return bool(passed == count and self.rows("select 1 from microflow_parked") == [])
        except sqlite3.Error:
            return False  # there are no tables yet

    def rows(self, sql: str) -> list[tuple[Any, ...]]:
        with closing(sqlite3.connect(f"file:{self.chain.folder / 'fed.db'}?mode=ro", uri=True, timeout=5)) as database:
            return database.execute(sql).fetchall()

    def handled(self, handler: str = "eat") -> dict[bytes, list[str]]:
        """The ids of the events that a handler has handled, by key, in the order of the commits."""
        handled: dict[bytes, list[str]] = defaultdict(list)
        for key, identifier in self.rows(
            f'select "key", event_id from effects where handler = {handler!r} order by position'
        ):
            handled[key.encode()].append(identifier)
        return handled

    def dead(self) -> list[tuple[Any, ...]]:
        """Handler, reason, attempts, key and value of each dead letter."""
        return self.rows(
            'select handler.name, reason, attempts, "key", value from microflow_dead_letters '
            "join microflow_handlers as handler on handler.id = handler order by handler.name"
        )


def in_order(records: Sequence[Record], *, without: Sequence[Record] = ()) -> dict[bytes, list[str]]:
    """The ids of records by key, in the order in which they stand in the log."""
    ids: dict[bytes, list[str]] = defaultdict(list)
    for record in records:
        if record not in without:
            assert record.key is not None
            ids[record.key].append(dict(record.headers)["ce_id"].decode())
    return ids


@pytest.fixture
def feeding(nursery: Nursery, tmp_path: Path) -> Iterator[Feeding]:
    with Chain(nursery, tmp_path) as chain:
        chain.deadly = {signal.SIGKILL, signal.SIGSEGV}
        yield Feeding(chain)


@pytest.mark.parametrize("kind", ["kill", "segfault", "decode"])
def test_one_event_that_kills_among_hundreds_is_one_dead_letter_after_three_crashes(
    feeding: Feeding, kind: str
) -> None:
    records = feeding.records(400, {170: kind})
    killer = records[170]

    feeding.run_until_all_is_handled(records)

    # The first death is nobody's: nothing was marked. The next three are.
    assert [len(marks) for marks in feeding.left_in_hand] == [0, 1, 1, 1]
    assert feeding.dead() == [("eat", "crashed", 3, killer.key, killer.value)]
    assert feeding.handled() == in_order(records, without=[killer])
    assert feeding.rows("select * from microflow_suspects") == []


def test_an_event_that_kills_at_its_second_attempt_is_found_among_the_parked_ones(feeding: Feeding) -> None:
    records = feeding.records(200, {80: "retry"})
    killer = records[80]

    feeding.run_until_all_is_handled(records)

    assert feeding.chain.kills == 4
    assert feeding.dead() == [("eat", "crashed", 4, killer.key, killer.value)]
    assert feeding.handled() == in_order(records, without=[killer])
    assert feeding.rows("select * from microflow_suspects") == []


def test_events_that_kill_are_found_when_two_processes_share_the_load(feeding: Feeding) -> None:
    records = feeding.records(400, {100: "kill", 101: "segfault", 350: "decode"})
    killers = [records[100], records[101], records[350]]

    feeding.run_until_all_is_handled(records, processes=2)

    assert sorted(value for *_, value in feeding.dead()) == sorted(killer.value or b"" for killer in killers)
    assert {reason for _, reason, *_ in feeding.dead()} == {"crashed"}
    assert feeding.handled() == in_order(records, without=killers)


def test_of_the_handlers_of_one_event_those_before_the_one_that_kills_have_their_effect(feeding: Feeding) -> None:
    """They are committed one by one, so that what is done stays done."""
    records = feeding.records(60, {31: "kill"}, kind=Weighed)
    killer = records[31]

    feeding.run_until_all_is_handled(records)

    assert feeding.handled("write_down") == in_order(records)
    assert feeding.handled("draw") == feeding.handled("tell") == in_order(records, without=[killer])
    assert [(handler, reason) for handler, reason, *_ in feeding.dead()] == [("draw", "crashed"), ("tell", "crashed")]


def test_a_process_that_dies_after_a_commit_has_not_been_killed_by_the_event(feeding: Feeding) -> None:
    """The mark goes with the commit."""
    records = feeding.records(60)

    feeding.run_until_all_is_handled(records, fault="after commit:1")

    assert feeding.left_in_hand == [[]] * 6
    assert feeding.dead() == []
    assert feeding.handled() == in_order(records)
