"""The runtime's vocabulary: a delivery of a record, the executions of its handlers, and how each of them ends."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import NamedTuple, TypeAlias

from microflow.context import Write
from microflow.envelopes import Envelope, Sealed
from microflow.handlers import Handler
from microflow.ports import Claim, ClaimKey, ClaimStatus, Mark, Order, OrderingKey, Parked, Record, TopicPartition
from microflow.tracing import Attempt

UNREADABLE = ""
"""The handler's name in the claim of a record whose headers cannot be read: no handler ever saw it."""


@dataclass(slots=True, eq=False)
class Delivery:
    """A record that was read, opened. `unsettled` counts its executions whose end is not yet committed.

    The offset of one that is `detached` is not its to finish: it comes from the parked rows, and was finished when it
    was parked, or its partition is being read again. A `mark` is cleared with its end. Its `home` is what this process
    must own to commit it: the partition it was read from, or a share of it. One that is `sent_again` was, by somebody
    who wants a handler to try what it gave up once more.
    """

    record: Record
    envelope: Envelope
    unsettled: int = 0
    detached: bool = False
    mark: Mark | None = None
    sent_again: bool = False
    source: TopicPartition = field(init=False)
    home: TopicPartition = field(init=False)
    ordering: OrderingKey | None = field(init=False)
    """What its executions are kept in order by; None for a record without a key."""
    queue: OrderingKey | bytes = field(init=False)
    """The queue of its executions: its key's, or one of its own. A redelivery of the record has the same."""

    def __post_init__(self) -> None:
        # Each is asked for half a dozen times on a record's way.
        record = self.record
        self.source = self.home = record.source
        self.ordering = None if record.key is None else OrderingKey(record.topic, record.key)
        self.queue = self.ordering or self.envelope.digest


# ── how an execution ends ─────────────────────────────────────────────────────────────────────────────────────────


class Succeeded(NamedTuple):
    """The handler returned: what it emits, and the writes it left."""

    sealed: tuple[Sealed, ...]
    writes: tuple[Write, ...]


class Failed(NamedTuple):
    """An attempt failed; the next one is due at an instant, or there is none (`reason` says why it is given up)."""

    error: BaseException
    at: datetime
    due: datetime | None
    reason: str = ""


class Postponed(NamedTuple):
    """It may not run now, or not here: an earlier event of its key is parked, or only another version of the service
    has its handler. Not an attempt. `narrow`: that earlier one is parked for its handler, which keeps nobody else
    waiting."""

    at: datetime
    narrow: bool = False


@dataclass(frozen=True, slots=True)
class Inside:
    """The handler asks for the transaction: it runs there."""


Outcome: TypeAlias = Succeeded | Failed | Postponed | Inside


class State(enum.Enum):
    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"


# By themselves, because looking them up in their class takes ten times as long, and they are asked for all the time.
WAITING, RUNNING, FINISHED = State.WAITING, State.RUNNING, State.FINISHED


@dataclass(slots=True, eq=False)
class Execution:
    """One handler's turn at one delivery. `stranger` is the name of a handler that only another version of the service
    has: it cannot run here, and is `given` its outcome when it is opened, as one is whose headers cannot be read.

    `crashes` counts the processes that have ended while it was alone in hand.
    `sequence` is its place in the lane. `parked` is the row it resumes, if it was parked before. An `orphan` ran when
    its partition was taken away: it may be adopted by a redelivery, and is never committed unless it is; an
    `obsolete` one cannot be adopted any more and only keeps its key closed until it ends.
    A `recalled` one runs behind one that failed in its transaction: its result does not count, and it waits again.
    `repeats` are deliveries of the same event that came while it was under way. `trace` is the span of the attempt that
    runs or has run, if somebody wants to see it. `ended` says that its lane is done
    with it, whatever became of it.
    """

    delivery: Delivery
    handler: Handler | None
    stranger: str = ""
    given: Outcome | None = None
    crashes: int = 0
    sequence: int = 0
    parked: Parked | None = None
    state: State = WAITING
    outcome: Outcome | None = None
    took: timedelta = timedelta(0)
    orphan: bool = False
    obsolete: bool = False
    recalled: bool = False
    ended: bool = False
    trace: Attempt | None = None
    repeats: list[Execution] = field(default_factory=list)
    claim_key: ClaimKey = field(init=False)

    def __post_init__(self) -> None:
        self.claim_key = ClaimKey(
            self.handler.name if self.handler else self.stranger or UNREADABLE, self.delivery.envelope.digest
        )
        self.outcome = self.given

    @property
    def attempt(self) -> int:
        """The number of this attempt, from 1."""
        return (self.parked.attempt if self.parked else 0) + self.crashes + 1

    @property
    def order(self) -> Order:
        """What waits while it is parked. What other versions do with it is theirs to say: here it waits for itself.

        What was parked for its handler alone stays so, and so does what waits behind it: for the other handlers later
        events of the key have gone by.
        """
        if self.handler is None:
            return "handler" if self.stranger else "none"
        return "handler" if self.handler.order == "key" and self._is_narrow else self.handler.order

    @property
    def _is_narrow(self) -> bool:
        if isinstance(self.outcome, Postponed) and self.outcome.narrow:
            return True
        return self.parked is not None and self.parked.order == "handler"

    @property
    def halts(self) -> bool:
        return self.handler is not None and self.handler.halt

    @property
    def parks(self) -> bool:
        """Whether its end leaves a parked row, which others may have to wait for."""
        outcome = self.outcome
        if isinstance(outcome, Failed):
            return outcome.due is not None or self.halts
        return isinstance(outcome, Postponed)

    def wait_again(self) -> None:
        """Forget its result: what it ran behind has failed."""
        if self.trace is not None:
            self.trace.roll_back()
            self.trace = None
        self.state = WAITING
        self.recalled = False
        self.outcome = self.given

    def claim(self) -> Claim:
        delivery = self.delivery
        return Claim(
            self.claim_key,
            delivery.envelope.content,
            delivery.source,
            delivery.record.offset,
            self._status(),
            self.parked is not None,
        )

    def _status(self) -> ClaimStatus:
        if self.parks:
            return "parked"
        return "dead" if isinstance(self.outcome, Failed) else "done"
