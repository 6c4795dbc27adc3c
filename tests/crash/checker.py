"""The checker: looks at all of the log and of the tables, as they were read from outside, and says what was broken.

It shares no code with the runtime. The effects have no unique index, so an effect that came twice shows.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal, TypeAlias

from tests.crash.readings import Logged, Snapshot

Invariant: TypeAlias = Literal[
    "lost",
    "twice",
    "effect without its record",
    "record without its effect",
    "effects out of order",
    "records out of order",
    "old epoch",
    "given up",
    "not drained",
]


@dataclass(frozen=True, slots=True)
class Violation:
    """One promise that was not kept, and on which event."""

    invariant: Invariant
    what: str


@dataclass(frozen=True, slots=True)
class Step:
    """What one handler does: it reads a type from a topic and emits another one on another."""

    service: str
    handler: str
    reads: str
    topic: str
    emits: str
    to: str


CHAIN = (
    Step("first", "accept", "Placed", "Placed", "Accepted", "orders"),
    Step("first", "audit", "Placed", "Placed", "Audited", "orders"),
    Step("second", "settle", "Accepted", "orders", "Settled", "ledger"),
    Step("second", "note", "Audited", "orders", "Noted", "ledger"),
)
SERVICES = ("first", "second")


def is_drained(snapshot: Snapshot) -> bool:
    """Whether nothing is left to be done."""
    return not list(_not_drained(snapshot))


def check(snapshot: Snapshot) -> list[Violation]:
    """Every promise that is not kept, once all is quiet."""
    return [
        *_lost_and_twice(snapshot),
        *_effects_and_records(snapshot),
        *_effects_out_of_order(snapshot),
        *_records_out_of_order(snapshot),
        *_old_epochs(snapshot),
        *_given_up(snapshot),
        *_not_drained(snapshot),
    ]


# ── promises ──────────────────────────────────────────────────────────────────────────────────────────────────────


def _lost_and_twice(snapshot: Snapshot) -> Iterator[Violation]:
    for step in CHAIN:
        tables = snapshot.tables[step.service]
        ends = Counter(effect.event_id for effect in tables.effects if effect.handler == step.handler)
        ends.update(event_id for handler, event_id in tables.dead if handler == step.handler)
        for event_id in {record.id for record in snapshot.log if record.type == step.reads}:
            if ends[event_id] == 0:
                yield Violation("lost", f"{step.handler} has neither done nor given up {event_id}")
            elif ends[event_id] > 1:
                yield Violation("twice", f"{step.handler} has ended {event_id} {ends[event_id]} times")


def _effects_and_records(snapshot: Snapshot) -> Iterator[Violation]:
    for step in CHAIN:
        tables = snapshot.tables[step.service]
        causes = {effect.event_id for effect in tables.effects if effect.handler == step.handler}
        emitted = {record.cause for record in snapshot.log if _is_emitted_by(record, step)}
        for cause in causes - emitted:
            yield Violation("effect without its record", f"{step.handler} handled {cause}: no {step.emits}")
        for ghost in emitted - causes:
            yield Violation("record without its effect", f"a {step.emits} because of {ghost}: {step.handler} did not")


def _effects_out_of_order(snapshot: Snapshot) -> Iterator[Violation]:
    ranks = {
        (record.topic, record.key, record.id): rank for rank, record in enumerate(_first_occurrences(snapshot.log))
    }
    for service, tables in snapshot.tables.items():
        latest: dict[tuple[str, str], int] = defaultdict(lambda: -1)
        once = {(effect.handler, effect.event_id): effect for effect in reversed(tables.effects)}
        for effect in reversed(once.values()):  # the first of each: that there are more is told elsewhere
            rank = ranks.get((effect.topic, effect.key, effect.event_id), -1)
            if rank < latest[effect.topic, effect.key]:
                what = f"{service}.{effect.handler} handled {effect.event_id} after a later event of {effect.key}"
                yield Violation("effects out of order", what)
            latest[effect.topic, effect.key] = max(rank, latest[effect.topic, effect.key])


def _records_out_of_order(snapshot: Snapshot) -> Iterator[Violation]:
    """First occurrences in the log stand in the order of the commits, per key."""
    for service, tables in snapshot.tables.items():
        steps = {step.handler: step for step in CHAIN if step.service == service}
        by_type = {step.emits: step.handler for step in steps.values()}
        committed: dict[str, list[tuple[str, str]]] = defaultdict(list)
        for effect in tables.effects:
            if (turn := (effect.handler, effect.event_id)) not in committed[effect.key]:
                committed[effect.key].append(turn)
        logged: dict[str, list[tuple[str, str]]] = defaultdict(list)
        for record in _first_occurrences(snapshot.log):
            if record.source == f"/services/{service}" and record.cause is not None:
                logged[record.key].append((by_type[record.type], record.cause))
        for key, turns in logged.items():
            expected = [turn for turn in committed[key] if turn in set(turns)]
            for place, (turn, other) in enumerate(zip(turns, expected, strict=False)):
                if turn != other:
                    yield Violation("records out of order", f"{service}: {key} has {turn} at {place}, not {other}")
                    break


def _old_epochs(snapshot: Snapshot) -> Iterator[Violation]:
    for tables in snapshot.tables.values():
        for effect in tables.effects:
            if effect.process != effect.owner:
                what = f"{effect.process} committed {effect.event_id} on a partition of {effect.owner}"
                yield Violation("old epoch", what)


def _given_up(snapshot: Snapshot) -> Iterator[Violation]:
    """It is the harness that kills, not the events."""
    for service, tables in snapshot.tables.items():
        for handler, event_id in tables.crashed:
            yield Violation("given up", f"{service}.{handler} is said to have died of {event_id}")


def _not_drained(snapshot: Snapshot) -> Iterator[Violation]:
    ends: dict[tuple[str, int], int] = {}
    for record in snapshot.log:
        ends[record.topic, record.partition] = record.offset + 1
    for service in SERVICES:
        tables = snapshot.tables[service]
        if tables.parked or tables.outbox:
            what = f"{service} has {tables.parked} events parked and {tables.outbox} in the outbox"
            yield Violation("not drained", what)
        topics = {step.topic for step in CHAIN if step.service == service}
        for (topic, partition), end in ends.items():
            if topic in topics and tables.watermarks.get((topic, partition), 0) < end:
                what = f"{service} has read {topic}[{partition}] up to {tables.watermarks.get((topic, partition))}"
                yield Violation("not drained", f"{what}, and it ends at {end}")


def _is_emitted_by(record: Logged, step: Step) -> bool:
    return record.type == step.emits and record.topic == step.to and record.source == f"/services/{step.service}"


def _first_occurrences(log: Iterable[Logged]) -> Iterator[Logged]:
    seen: set[tuple[str, str]] = set()
    for record in log:
        if (record.source, record.id) not in seen:
            seen.add((record.source, record.id))
            yield record
