"""What the log of an order saga tells of promises that were broken, to one who knows the roads but no service."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence

from examples.order_saga.placing import ENDS
from tests.crash.readings import Logged

FOLLOWS: Mapping[str, frozenset[str]] = {
    "OrderAccepted": frozenset({"PaymentReceived", "PaymentDeclined"}),
    "PaymentReceived": frozenset({"ItemsReserved", "ItemsOutOfStock"}),
    "ItemsReserved": frozenset({"ShipmentScheduled", "ShipmentRefused"}),
    "RefundApproved": frozenset({"PaymentRefunded"}),
}
"""What each event of a type has as its effect, once and in one of these forms, whatever else happens."""

ORDER: Sequence[tuple[str, Collection[str]]] = (
    ("OrderAccepted", {"OrderWithdrawn", "OrderCompleted", "OrderRejected"}),
    ("OrderWithdrawn", {"OrderCancelled", "OrderRejected"}),
    ("PaymentReceived", {"RefundApproved"}),
    ("RefundApproved", {"PaymentRefunded"}),
    ("ItemsReserved", {"ItemsReleased"}),
)
"""What stands in one topic before what, the first time that each is there."""


def broken(log: Sequence[Logged], *, placed: Collection[str]) -> list[str]:
    """Every broken promise, in words; `placed` are the ids of the events that customers have published."""
    return [*_lost(log, placed), *_doubled(log), *_ends(log), *_out_of_order(log)]


def ends_in(log: Sequence[Logged]) -> Mapping[str, str]:
    """How each order ended."""
    return {record.key: record.type for record in log if record.type in ENDS}


def _lost(log: Sequence[Logged], placed: Collection[str]) -> Iterator[str]:
    ids = {record.id for record in log}
    roots = {record.id for record in log if record.cause is None}
    for identifier in set(placed) ^ roots:
        yield f"{identifier} is in the log without having been published, or the other way round"
    effects: dict[str, set[str]] = defaultdict(set)
    for record in log:
        if record.cause is not None:
            effects[record.cause].add(record.type)
            if record.cause not in ids:
                yield f"the cause of {record} is not in the log"
    for record in log:
        if record.type in FOLLOWS and len(effects[record.id] & FOLLOWS[record.type]) != 1:
            yield f"{record} is followed by {effects[record.id]}"


def _doubled(log: Sequence[Logged]) -> Iterator[str]:
    # The customers' own events may be there several times; of all others an order has one of a type.
    emitted = {(record.key, record.type, record.id) for record in log if record.cause is not None}
    for (key, kind), times in Counter((key, kind) for key, kind, _ in emitted).items():
        if times > 1:
            yield f"{key} has {times} different {kind}"


def _ends(log: Sequence[Logged]) -> Iterator[str]:
    ends: dict[str, set[str]] = {record.key: set() for record in log}
    for record in log:
        if record.type in ENDS:
            ends[record.key].add(record.id)
    for key, each in ends.items():
        if len(each) != 1:
            yield f"{key} has {len(each)} ends"


def _out_of_order(log: Sequence[Logged]) -> Iterator[str]:
    first: dict[tuple[str, str], tuple[str, int, int]] = {}
    for record in log:
        place = (record.topic, record.partition, record.offset)
        if first.setdefault((record.key, record.type), place)[:2] != place[:2]:
            yield f"{record} is in another partition than before"
    for key in {record.key for record in log}:
        for earlier, later_ones in ORDER:
            for later in later_ones:
                if {(key, earlier), (key, later)} <= first.keys() and first[key, earlier] > first[key, later]:
                    yield f"{key}: {later} stands before {earlier}"
