"""The bounds that keep memory flat and one slow event from becoming everybody's problem."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """`deadline`: the longest an execution may take, unless its handler says otherwise; `connection_deadline`: the
    longest a handler may hold the transaction open; `foreign_wait`: how long it may wait for somebody else before that
    is logged; `max_emitted`: events that one execution may emit; `concurrency`: executions that run at once in a lane;
    `batch`: executions in one transaction; `fetch`: records taken at once, and `fetch_wait` how long to wait for
    one; `in_flight`: records read and not yet committed, over all partitions; `window`: how far a partition may be
    read beyond its watermark; `resumed`: parked events in hand at once; `relay_batch`: outbox rows published at
    once, and `relay_in_hand` at most on their way; `from_memory`: whether what was just committed is published
    without a look at the outbox; `heartbeat`: how often a process says that it lives; `careful_for`: how long events
    are handled one at a time after a process has died; `failing_keys`: for how many keys in a row the first attempt
    fails until a handler rests; `parked_per_handler` and `outbox_per_destination`: how many events may be parked for a
    handler, and wait for a topic, until what adds to them pauses; `inbox_retention` and `dead_letter_retention`: how
    long a finished claim and a dead letter are kept.
    """

    deadline: timedelta = timedelta(seconds=60)
    connection_deadline: timedelta = timedelta(seconds=10)
    foreign_wait: timedelta = timedelta(seconds=1)
    max_emitted: int = 10_000
    concurrency: int = 100
    batch: int = 500
    fetch: int = 500
    fetch_wait: timedelta = timedelta(seconds=1)
    in_flight: int = 2_000
    window: int = 10_000
    resumed: int = 100
    relay_batch: int = 500
    relay_in_hand: int = 2_000
    from_memory: bool = True
    heartbeat: timedelta = timedelta(seconds=10)
    careful_for: timedelta = timedelta(seconds=30)
    failing_keys: int = 20
    parked_per_handler: int = 100_000
    outbox_per_destination: int = 100_000
    inbox_retention: timedelta = timedelta(days=7)
    dead_letter_retention: timedelta = timedelta(days=90)
