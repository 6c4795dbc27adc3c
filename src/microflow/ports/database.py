"""What the runtime asks of a service's database."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Literal, NamedTuple, Protocol, TypeAlias

from microflow.connection import Connection
from microflow.errors import StoreError
from microflow.handlers import Trigger
from microflow.records import Headers, Record, TopicPartition
from microflow.retries import Order

ClaimStatus: TypeAlias = Literal["done", "parked", "dead"]


class ClaimKey(NamedTuple):
    """What a claim is unique by, within a service: a handler, and the digest of an event's source and id."""

    handler: str
    digest: bytes


class Claim(NamedTuple):
    """One handler's claim to one event. At most one transaction ever gets it.

    `content` is a digest of the record's value, to notice the same id with other bytes. `resumes` is true for an
    event that was parked: its claim is there already, and is granted while its parked row is.
    """

    key: ClaimKey
    content: bytes
    source: TopicPartition
    offset: int
    status: ClaimStatus = "done"
    resumes: bool = False


class OrderingKey(NamedTuple):
    """What is kept in order within a service: a topic and a key. Records without a key have no order."""

    topic: str
    key: bytes


@dataclass(frozen=True, slots=True)
class Parked:
    """An event that waits for its next attempt, or behind one that does.

    `attempt` counts the attempts made (0: it waits behind another one). `due` is the instant of the next attempt;
    None: never by itself (the handler says `halt`, and a dead letter came before). `order` says what waits for it.
    """

    claim: ClaimKey
    record: Record
    order: Order
    attempt: int
    due: datetime | None
    content: bytes = b""
    error: str = ""
    first_failed_at: datetime | None = None


class Blocked(NamedTuple):
    """What waits for an ordering key's parked events: everything (`all_handlers`), or these handlers only."""

    all_handlers: bool
    handlers: frozenset[str]


DeadLetterState: TypeAlias = Literal["dead", "redriving", "done"]


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """An event that no attempt will help, with all its bytes. `id` is the store's, 0 before it is stored.

    `reason` is one of `decode`, `contract`, `rejected`, `exhausted`, `crashed`, `retired`; `error` the exception's
    class and text; `trace` the user's frames. `handler` is "" when the record never reached one.
    """

    claim: ClaimKey
    record: Record
    reason: str
    error: str
    trace: str
    attempts: int
    first_failed_at: datetime
    failed_at: datetime
    order: Order = "key"
    content: bytes = b""
    id: int = 0
    state: DeadLetterState = "dead"

    def __repr__(self) -> str:
        # What somebody who compares a list of them with [] wants to see: the error, and whose it is.
        record, handler = self.record, self.claim.handler or "no handler"
        key = "no key" if record.key is None else record.key.decode(errors="replace")
        place = f"{record.topic}[{record.partition}]@{record.offset}"
        return f"<DeadLetter {self.id} of {handler}: {place}, {key}, {self.state} after {self.attempts}: {self.error}>"


class OutboxRow(NamedTuple):
    """An emitted event that is to be published. `position` is the store's: within a key it grows in commit order.

    `publisher` names the process that publishes it from memory: for a short while after `created_at` others leave it,
    and what is behind it in its key, to that one. `partition` says where it goes, modulo the partitions of its topic;
    without one it goes where its key belongs.
    """

    topic: str
    key: bytes | None
    value: bytes | None
    headers: Headers
    created_at: datetime
    position: int = -1
    publisher: int | None = None
    partition: int | None = None


class Appended(NamedTuple):
    """What became of an outbox row: where it stands, and whether it kept its `publisher`."""

    position: int
    has_publisher: bool


class Mark(NamedTuple):
    """Says that an event is in hand, alone in its whole process. `home` is the partition under whose epoch it is
    handled, `partition` and `offset` where its record stands in that topic."""

    home: TopicPartition
    partition: int
    offset: int


class Beginning(NamedTuple):
    """Where a partition is read from when it is read for the first time, or anew, and of which incarnation it is."""

    offset: int
    incarnation: str


@dataclass(slots=True)
class Changes:
    """What a transaction writes last, in one go: whatever its size, it costs a few statements."""

    parked: list[Parked] = field(default_factory=list)
    """Upserted by claim. A row that is there keeps its place in the order of its key."""
    dead_letters: list[DeadLetter] = field(default_factory=list)
    outbox: list[OutboxRow] = field(default_factory=list)
    watermarks: dict[TopicPartition, int] = field(default_factory=dict)
    """Next offset to read, per partition. A stored one never goes back."""
    cleared: list[Mark] = field(default_factory=list)
    """Marks of events that have come to their end, with the crashes that were counted for them."""
    beginnings: dict[TopicPartition, Beginning] = field(default_factory=dict)
    """Partitions read for the first time, or anew: their watermark is set, back if need be, and a handler that was
    registered to be read from further on is read from there."""


class Transaction(Protocol):
    """One atomic step: all of it is committed, or none. The methods are called in this order.

    Every one raises StoreError, or a subclass that says more.
    """

    async def fence(
        self,
        epochs: Mapping[TopicPartition, int],
        *,
        registry: int | None = None,
        keys: Collection[OrderingKey] = (),
    ) -> None:
        """Raise Fenced unless each epoch is the partition's current one, RegistryChanged unless `registry` is the
        version of the service's registry, and keep both so until the transaction ends.

        `registry` must be given for whatever moves a watermark over records that were read: their handlers are those
        that were known under that version.

        `keys` are the topics and keys of outbox rows that `write` will append, as far as they are known by now: nobody
        else appends to them until the transaction ends, so that positions of a key grow in commit order. `write`
        sees to it for those that are not named here.
        """
        ...

    async def claim(self, claims: Sequence[Claim], *, now: datetime) -> Sequence[bool]:
        """Enter claims with their status; True for each one granted.

        Not granted: one that is there already, one that stands earlier in the same call, one that `resumes` and
        has no parked row. A granted one that resumes and is not `parked` again loses its parked row.
        """
        ...

    @property
    def connection(self) -> Connection:
        """For handlers and their kept writes. Usable from `claim` to `write`."""
        ...

    def session(self, kind: type[Any]) -> AbstractAsyncContextManager[Any]:
        """A session of SQLAlchemy, of this class, on `connection`; its objects are detached when the block ends.

        It cannot end the transaction, and an SQL error in it counts as one on `connection`.
        """
        ...

    @property
    def failure(self) -> StoreError | None:
        """The first error of this transaction that no savepoint undid: whoever caught it, nothing can be committed."""
        ...

    async def write(self, changes: Changes) -> Sequence[Appended]:
        """Write all of it; return what became of each outbox row, in order.

        A row keeps its `publisher` only if no row of that topic and key was there that has another one, or none; rows
        of the same call are not looked at. This is looked at when the key's locks are
        taken: so whoever publishes what it has appended as a publisher, in order, overtakes nobody. A row without a
        key keeps it always.
        """
        ...


class Ownership(NamedTuple):
    """A partition's epoch (it grows with every owner), its stored watermark (None: never read), and how it was left.

    `clean`: nobody had it before, or whoever had it released it without a word of care. `careful_until` is what the
    owner before said when it released it; None if that one did not, or had no reason to. `incarnation` is that of its
    last beginning; None if that was before incarnations were stored.
    """

    epoch: int
    watermark: int | None
    clean: bool = True
    careful_until: int | None = None
    incarnation: str | None = None


class Owner(NamedTuple):
    """A partition's current epoch, and who began it: None if they have released it."""

    epoch: int
    owner: str | None


NOTHING: Mapping[TopicPartition, int] = {}


class Partitions(Protocol):
    """Who owns which partition of a service, and how far each has been committed."""

    async def take(
        self,
        partitions: Collection[TopicPartition],
        *,
        owner: str,
        unchanged: Mapping[TopicPartition, int] = NOTHING,
    ) -> Mapping[TopicPartition, Ownership]:
        """Begin a new epoch for each partition: transactions under an older one are refused from here on.

        Nothing is taken, and nothing returned, unless the partitions of `unchanged` have these epochs (0: nobody ever
        owned it), which they keep while this is done.

        Marks that are found count one crash each for their events, unless the owner before has released the partition.
        """
        ...

    async def owners(self) -> Mapping[TopicPartition, Owner]:
        """Whoever began the current epoch of each partition that was ever owned."""
        ...

    async def release(
        self, epochs: Mapping[TopicPartition, int], *, careful_until: Mapping[TopicPartition, int]
    ) -> None:
        """Say that their owner leaves partitions in good order. Those whose epoch is over are passed over.

        Up to the offset of `careful_until` the next owner has to be as careful as this one was.
        """
        ...

    async def watermarks(self) -> Mapping[TopicPartition, int]:
        """All stored watermarks of the service."""
        ...

    async def incarnations(self) -> Mapping[TopicPartition, str]:
        """Of which incarnation of its topic each partition's stored watermark is, where that was stored."""
        ...


class Suspects(Protocol):
    """Events that may end the process that handles them, as marks that outlive it tell."""

    async def mark(self, mark: Mark, *, epoch: int) -> None:
        """Commit a mark before its event is touched. The death of this process leaves it, a power cut may not.

        Raises Fenced unless the epoch is the current one of the mark's home.
        """
        ...

    async def known(self, homes: Collection[TopicPartition]) -> Mapping[Mark, int]:
        """The marks that are there, each with the crashes that were counted for its event."""
        ...


class Inbox(Protocol):
    """The claims of a service's handlers."""

    async def seen(self, keys: Collection[ClaimKey]) -> Mapping[ClaimKey, bytes]:
        """The claims that are there, whatever their status, each with its `content`."""
        ...

    async def claimed_from(self, handler: str, offsets: Mapping[TopicPartition, int]) -> bool:
        """Whether a handler has a claim, whatever its status, to a record at or behind one of these offsets."""
        ...

    async def purge(self, *, completed_before: datetime, limit: int) -> int:
        """Forget claims completed before an instant whose offset the stored watermark has passed; return how many.

        Claims of parked events and of dead letters that are still there stay.
        """
        ...


class Parking(Protocol):
    """The events of a service that wait for their next attempt."""

    async def blocked(self, keys: Collection[OrderingKey]) -> Mapping[OrderingKey, Blocked]:
        """What waits behind parked events, for those of the keys that have any."""
        ...

    async def due(
        self,
        partitions: Collection[TopicPartition],
        *,
        now: datetime,
        limit: int,
        excluding: Collection[ClaimKey] = (),
        handlers: Collection[str] | None = None,
    ) -> Sequence[Parked]:
        """Events that may run now: due, and no parked event that they wait for stands before them. Oldest first.

        Those of `handlers` only, if these are named.
        """
        ...

    async def next_due(
        self,
        partitions: Collection[TopicPartition],
        *,
        excluding: Collection[ClaimKey] = (),
        handlers: Collection[str] | None = None,
    ) -> datetime | None:
        """The instant of the next retry: the earliest `due` of these partitions, None if nothing will be."""
        ...

    async def changed(self) -> None:
        """Return soon after anybody, in this process or another, may have parked or redriven an event since the last
        call returned. It may return without a reason."""
        ...

    async def count(self) -> int: ...

    async def counts(self, *, at_most: int | None = None) -> Mapping[str, int]:
        """How many events are parked for each handler that has any; it is not counted further than `at_most`."""
        ...

    async def waiting(self, handler: str, *, limit: int) -> Sequence[Parked]:
        """The first events that are parked for a handler, in the order in which they were parked."""
        ...


class DeadLetters(Protocol):
    """The events of a service that were given up, with all their bytes."""

    async def list(self, *, handler: str | None = None, limit: int = 100, after: int = 0) -> Sequence[DeadLetter]:
        """Dead letters by ascending id, those of one handler if named. Redriven ones are listed with their state."""
        ...

    async def get(self, identifier: int) -> DeadLetter | None: ...

    async def of(self, claims: Collection[ClaimKey]) -> Mapping[ClaimKey, int]:
        """The ids of those dead letters of these claims that are `dead`."""
        ...

    async def redrive(self, identifiers: Collection[int], *, now: datetime) -> frozenset[int]:
        """Park dead letters for their handler again, due now, behind whatever of their key is parked.

        Returns the ids that were `dead` and are `redriving` now: of two who ask at once, one gets each. One whose
        handler halted goes back to its own place. It is `done` when its handler has succeeded, `dead` again if not.
        """
        ...

    async def purge(self, *, failed_before: datetime, limit: int) -> int:
        """Forget dead letters that failed before an instant; return how many.

        Those that are being redriven stay, and those that halt their key: redriving them is what frees it.
        """
        ...


class OutboxStatus(NamedTuple):
    pending: int
    oldest: datetime | None


class Outbox(Protocol):
    """What was committed and is not yet known to be in the log. It belongs to the database, not to one service."""

    @property
    def shards(self) -> int:
        """Into how many shards keys are spread, numbered from 0: several relays share them. A key is in one always."""
        ...

    async def pending(self, *, after: int, limit: int, shards: Collection[int] | None = None) -> Sequence[OutboxRow]:
        """Rows behind a position, in order, to look at; those of some shards only, if these are named."""
        ...

    def scan(
        self, *, page: int, shards: Collection[int] | None = None, publisher: int | None = None
    ) -> AbstractAsyncContextManager[AsyncIterator[Sequence[OutboxRow]]]:
        """All rows, or those of some shards, to publish: in pages of about so many, in order, as of one moment.

        So whoever has come to a row has passed every earlier row of its key, also one that was committed late under a
        low position. Rows whose `publisher` is the one that is named may be left out: it has them in hand, unless the
        store has brought back what it was told to forget. Is left within seconds.
        """
        ...

    async def delete(self, positions: Collection[int]) -> None:
        """Forget rows that the log has acknowledged. Rows that are gone already are no error."""
        ...

    async def lease(self, *, owner: str, now: datetime, until: datetime) -> frozenset[int]:
        """Become, or stay, the one who publishes some shards; return which they are now.

        A shard whose lease of somebody else runs beyond `now` is not given, unless that lease ends later than `until`:
        then it is from before the clock was set back, and does not count. Those who go on asking come to share the
        shards evenly; `until=now` gives all back. A lease saves work, it protects nothing: two who publish at once
        repeat records, they never reorder them.
        """
        ...

    async def changed(self) -> None:
        """Return soon after anybody, in this process or another, has committed rows since the last call returned.

        For rows that have a publisher, a second or two later is soon enough.
        """
        ...

    def appended(self) -> None:
        """Rows were committed that came by no transaction of this store: whoever waits in `changed` may know it now."""
        ...

    async def status(self) -> OutboxStatus: ...

    async def crowded(self, *, at_least: int) -> Mapping[str, int]:
        """The topics for which at least so many rows wait, and how many. Of a long outbox only the oldest are counted,
        ten times as many, so that it takes no longer than it may once a second."""
        ...

    async def partition_counts(self, found: Mapping[str, int]) -> Mapping[str, int]:
        """How many partitions of each topic are used: what is remembered, else what was found, which is now."""
        ...

    def switching(self, topic: str, *, partitions: int) -> AbstractAsyncContextManager[int]:
        """Use another number of a topic's partitions once the block has ended; nothing changes if it raises.

        Gives how many rows of the topic are pending. It waits for the transactions whose fence has passed, and while
        the block runs no other fence passes; afterwards those under an older version of a registry are refused. So
        whoever commits rows knows how many partitions are used.
        """
        ...


@dataclass(frozen=True, slots=True)
class Registered:
    """A handler as its service's database knows it: what triggers it, and the offset of each partition from which it
    reads that. A partition that is not named is read from where the service began, or will begin."""

    triggers: Mapping[Trigger, Mapping[int, int]]
    since: datetime


@dataclass(frozen=True, slots=True)
class Registry:
    """Which handlers a service has, whatever the process: `version` grows with every change of `handlers`.

    `processes` are those that live, each with its handlers and what triggers them. `renamed` are names that became
    other ones: a process that still uses one is of an old version.
    """

    version: int
    handlers: Mapping[str, Registered]
    processes: Mapping[str, Mapping[str, frozenset[Trigger]]]
    renamed: Mapping[str, str]


class Handlers(Protocol):
    """The registry of a service's handlers, in its own database."""

    async def registry(self, *, now: datetime) -> Registry:
        """The registry as it is now. A process lives until the instant that it named last."""
        ...

    async def register(
        self, handlers: Mapping[str, Collection[Trigger]], *, owner: str, now: datetime, until: datetime
    ) -> Registry:
        """Say that the process `owner` has these handlers, and lives until an instant; return the registry then.

        Triggers that are not remembered yet are, each from the stored watermarks of its topic on, but for those of a
        name that was renamed; that makes a new version. It waits for the transactions whose fence has passed, and none
        under an older version passes after it.
        """
        ...

    async def leave(self, *, owner: str) -> None:
        """A process ends: it does not live any more."""
        ...

    async def forget(
        self, gone: Mapping[str, Collection[Trigger]], *, now: datetime, although_awaited: bool = False
    ) -> Mapping[str, frozenset[Trigger]]:
        """Forget triggers that no live process has, in a new version; return those that were forgotten, by handler.

        While events are parked for a handler it keeps its last triggers, unless they are to go `although_awaited`: then
        no more events are parked for it once this returns.
        """
        ...

    async def rename(self, old: str, new: str, *, now: datetime) -> bool:
        """Give what a handler has claimed, and what is parked or dead for it, to another name; remember that it was
        renamed. False, and nothing done, if a live process has the old one.

        What both have claimed is done if one of them has done it.
        """
        ...


@dataclass(frozen=True, slots=True)
class Migration:
    """One file of SQL of the service's author, run once. `name` is its identity, `sql` may hold many statements."""

    name: str
    sql: str
    where: str

    @property
    def checksum(self) -> str:
        """By which it is noticed that the file has changed; its line ends, which git may change, do not count."""
        return hashlib.sha256("\n".join(self.sql.splitlines()).encode()).hexdigest()


class Store(Protocol):
    """A service's view of its database. Every table of ours is keyed by service; the outbox is the database's."""

    @property
    def lanes(self) -> int:
        """How many transactions at once are worth having."""
        ...

    @property
    def partitions(self) -> Partitions: ...
    @property
    def suspects(self) -> Suspects: ...
    @property
    def inbox(self) -> Inbox: ...
    @property
    def parking(self) -> Parking: ...
    @property
    def dead_letters(self) -> DeadLetters: ...
    @property
    def outbox(self) -> Outbox: ...
    @property
    def handlers(self) -> Handlers: ...

    async def look_up(
        self, claims: Collection[ClaimKey], keys: Collection[OrderingKey]
    ) -> tuple[Mapping[ClaimKey, bytes], Mapping[OrderingKey, Blocked]]:
        """What is known of events that arrive: `inbox.seen` of these claims, `parking.blocked` of these keys."""
        ...

    def transaction(self, *, pause: timedelta | None = None) -> AbstractAsyncContextManager[Transaction]:
        """Begin; commit when the block ends, roll back when it raises.

        A store may end a transaction that pauses between two statements, so that a process that has stopped frees its
        locks: after seconds, but not before `pause`, the longest that a handler inside may take.

        An error from the commit itself may mean that it was committed: run the step again, the claims answer.
        """
        ...

    async def migrate(self, migrations: Sequence[Migration]) -> Sequence[str]:
        """Run the service's own migrations that have not been run, in order, under one lock; return their names.

        Raises DefinitionError, with the file, for SQL the database refuses and for a migration whose text changed
        after it was run.
        """
        ...

    async def bind(self, cluster_id: str) -> str:
        """Remember the log this database belongs to and return the database's own id.

        Raises IdentityError if it belongs to another one.
        """
        ...

    async def probe(self) -> None:
        """Commit a write of 64 KiB on a fresh connection; raises StoreError if that is not possible now."""
        ...

    async def time(self) -> datetime:
        """The database's own clock, in UTC and aware."""
        ...

    async def close(self) -> None: ...
