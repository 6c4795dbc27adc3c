"""Rows on their way to the log: for each partition a queue in order, and one call at a time that publishes from it.

Two feed the queues: the relay's scan, and the atomic step, which hands over what it has just committed. A row gets into
its queue before anything later of its key can, and a queue that has failed is emptied: what was in it goes back to the
scan. So a row is published only when every earlier row of its key was acknowledged, or went before it on this stream.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections import deque
from collections.abc import Callable, Collection, Coroutine, Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from types import TracebackType
from typing import Any

from microflow.destinations import Destination, Destinations, ordering_of
from microflow.errors import LogGone, StoreError, StoreGone, TransportError
from microflow.faults import Reach
from microflow.ports import Appended, Clock, Headers, OrderingKey, Outbox, OutboxRow, Record, TopicPartition, Transport
from microflow.signals import Signal
from microflow.tracing import Tracing

logger = logging.getLogger("microflow.relay")

MOST_BYTES = 64 * 1024 * 1024
SLOW = timedelta(milliseconds=250)
FIRST_WAIT = timedelta(milliseconds=50)
LONGEST_WAIT = timedelta(seconds=5)

GENERATION_BITS = 23


@dataclass(slots=True, eq=False)
class _Entry:
    """A row in a queue. One that is not `committed` yet keeps the later ones of its key back; `was_handed_over` says
    that it did not come from a scan."""

    row: OutboxRow
    position: int
    record: Record
    partition: TopicPartition
    ordering: OrderingKey | int
    committed: bool
    was_handed_over: bool
    size: int


class Outgoing:
    """Publishes rows, and forgets in the outbox what the log has acknowledged.

    At most about `most` rows are in hand. `wake` is called when there is something for a scan to do: rows that have
    fallen back to it, or room again.
    """

    def __init__(
        self,
        outbox: Outbox,
        transport: Transport,
        destinations: Destinations,
        *,
        clock: Clock,
        owner: str,
        chance: Callable[[], float],
        batch: int,
        most: int,
        from_memory: bool,
        wake: Callable[[], None],
        tracing: Tracing,
        reach: Reach,
    ) -> None:
        self._outbox = outbox
        self._transport = transport
        self._destinations = destinations
        self._clock = clock
        self._batch = batch
        self._most = most
        self._from_memory = from_memory
        self._wake = wake
        self._tracing = tracing
        self._reach = reach
        self._queues: dict[TopicPartition, deque[_Entry]] = {}
        self._busy: set[TopicPartition] = set()
        self._slow: set[TopicPartition] = set()
        self._calls = 0
        self._bytes = 0
        self._in_hand: set[int] = set()
        self._acknowledged: list[int] = []
        self._just_deleted: set[int] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_deleting = False
        self._wants_room = False
        self._room = Signal(clock)
        # Another one after each start, also of what calls itself the same: what is in memory does not outlive it.
        life = f"{owner} {clock.now().isoformat()} {chance()}"
        self._name = int.from_bytes(hashlib.blake2b(life.encode(), digest_size=5).digest(), "big")
        self._generation = 0
        self._publisher = self._name << GENERATION_BITS
        self.failure: BaseException | None = None
        self.published = 0

    # ── what the atomic step hands over ───────────────────────────────────────────────────────────────────────────

    @property
    def publisher(self) -> int:
        """Who publishes from memory what is appended under this name. It changes whenever something falls back to the
        scan, so that what was appended under the old one counts as somebody else's."""
        return self._publisher

    def is_mine(self, publisher: int) -> bool:
        """Whether a publisher is, or was, this one."""
        return publisher >> GENERATION_BITS == self._name

    def publisher_of(self, topic: str, key: bytes | None, headers: Headers) -> int | None:
        """Who shall publish a row that is going to be appended: this one, from memory, or nobody in particular."""
        if not self._from_memory or self.is_full:
            return None
        partition = self._destinations.partition_of(topic, key, headers)
        return self._publisher if partition is not None and self._destinations.is_open(partition) else None

    def handing_over(self, *, version: int) -> HandOver:
        """A block around a transaction whose fence checks this version of the registry: what it takes is published
        once the block has ended without an error."""
        self._destinations.known_as_of(version)
        return HandOver(self)

    # ── what a scan finds ─────────────────────────────────────────────────────────────────────────────────────────

    @property
    def in_hand(self) -> Collection[int]:
        """The positions of rows that are on their way, or acknowledged and not yet deleted."""
        return self._in_hand

    @property
    def is_full(self) -> bool:
        return len(self._in_hand) >= self._most or self._bytes >= MOST_BYTES

    def begin_scan(self) -> None:
        """From now until the scan ends, remember what is deleted: pages that were read before may still hold it."""
        self._just_deleted = set()

    def end_scan(self) -> None:
        self._just_deleted = None

    def has(self, row: OutboxRow) -> bool:
        """Whether a row that a scan has read is on its way already, or was."""
        return row.position in self._in_hand or (self._just_deleted is not None and row.position in self._just_deleted)

    def offer(self, row: OutboxRow, partition: TopicPartition) -> None:
        """Take a committed row that is not in hand. The rows of a key come in order."""
        self._enqueue(row, row.position, partition, committed=True)

    async def has_room(self, *, wait: timedelta) -> bool:
        """Whether there is room for more, or will be after such a wait. If not, `wake` is called once there is."""
        ends = self._clock.monotonic() + wait
        while self.is_full:
            self._wants_room = True
            if self._clock.monotonic() >= ends:
                return False
            await self._room.wait(at_most=ends - self._clock.monotonic())
        self._wants_room = False
        return True

    def flush(self) -> None:
        """Publish whatever may be published now."""
        while self._calls < self._transport.publishing_at_once:
            wave = [entry for partition in self._idle(slow=False) for entry in self._next(partition)]
            if not wave:
                break
            self._calls += 1
            self._begin(self._publish(wave, counts=True))
        # One that was slow, as one that looks for a leader, goes by itself: nobody else waits for its answer.
        for partition in self._idle(slow=True):
            if wave := self._next(partition):
                self._begin(self._publish(wave, counts=False))

    async def settled(self) -> None:
        """Return once nothing is on its way. Raises what cannot be overcome."""
        while self._tasks:
            await asyncio.wait(self._tasks)
        if self.failure is not None:
            raise self.failure

    async def close(self) -> None:
        """Leave everything as it is, as a crash would."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    # ── the queues ────────────────────────────────────────────────────────────────────────────────────────────────

    def expect(self, rows: Sequence[OutboxRow], appended: Sequence[Appended]) -> tuple[list[_Entry], bool]:
        """Take the rows of a transaction that is about to be committed, while it holds the locks of their keys.

        Returns those that were taken, and whether these are all.
        """
        entries: list[_Entry] = []
        refused: set[Destination] = set()
        left: set[OrderingKey | int] = set()  # to the scan, so what comes behind them in this transaction is, too
        for row, (position, has_publisher) in zip(rows, appended, strict=True):
            if not has_publisher:
                left.add(ordering_of(row, position))
                continue
            partition = self._destinations.partition_of(row.topic, row.key, row.headers, row.partition)
            if partition is None:
                refused.add(row.topic)
            elif (
                row.publisher == self._publisher
                and partition not in refused
                and self._destinations.is_open(partition)
                and not (left and ordering_of(row, position) in left)
            ):
                entries.append(self._enqueue(row, position, partition, committed=False))
            else:
                refused.add(partition)
        if refused:  # something has failed since these rows were marked: they are the scan's
            self._renounce(refused)
        return entries, len(entries) == len(rows)

    def commit(self, entries: Iterable[_Entry]) -> None:
        """What was expected is committed."""
        for entry in entries:
            entry.committed = True
        self.flush()

    def abandon(self, entries: Sequence[_Entry]) -> None:
        """What was expected was rolled back, or perhaps committed: nobody knows. A scan will see."""
        if not entries:
            return
        orderings = {entry.ordering for entry in entries}
        partitions = {entry.partition for entry in entries}
        for partition in partitions & self._queues.keys():
            queue = self._queues.pop(partition)
            for entry in queue:
                if entry.ordering in orderings:
                    self._let_go(entry)
            if kept := deque(entry for entry in queue if entry.ordering not in orderings):
                self._queues[partition] = kept
        self._renounce(partitions)

    def _enqueue(self, row: OutboxRow, position: int, partition: TopicPartition, *, committed: bool) -> _Entry:
        record = Record(row.topic, partition.partition, row.key, row.value, row.headers)
        ordering = ordering_of(row, position)
        size = len(row.value or b"") + 1024
        entry = _Entry(row, position, record, partition, ordering, committed, not committed, size)
        queue = self._queues.get(partition)
        if queue is None:
            queue = self._queues[partition] = deque()
        queue.append(entry)
        self._in_hand.add(position)
        self._bytes += size
        return entry

    def _idle(self, *, slow: bool) -> list[TopicPartition]:
        return [each for each in self._queues if each not in self._busy and (each in self._slow) == slow]

    def _next(self, partition: TopicPartition) -> list[_Entry]:
        """Take from a queue what may be published now, in order, and keep its partition busy with it."""
        queue = self._queues[partition]
        taken: list[_Entry] = []
        kept: deque[_Entry] = deque()
        held: set[OrderingKey | int] = set()
        while queue and len(taken) < self._batch:
            entry = queue.popleft()
            if entry.committed and (not held or entry.ordering not in held):
                taken.append(entry)
            else:
                kept.append(entry)
                held.add(entry.ordering)
        kept.extend(queue)
        if kept:
            self._queues[partition] = kept
        else:
            del self._queues[partition]
        if taken:
            self._busy.add(partition)
        return taken

    def _let_go(self, entry: _Entry) -> None:
        self._in_hand.discard(entry.position)
        self._bytes -= entry.size

    def _tell_room(self) -> None:
        if self._wants_room and len(self._in_hand) <= self._most // 2 and self._bytes <= MOST_BYTES // 2:
            self._wants_room = False
            self._room.set()
            self._wake()

    def _renounce(self, destinations: Iterable[Destination]) -> None:
        """Rows that have a publisher are the scan's now: whatever comes after them must not take them for its own.

        A scan that is under way may have passed them, so it takes nothing more for these destinations.
        """
        self._generation = (self._generation + 1) % (1 << GENERATION_BITS)
        self._publisher = self._name << GENERATION_BITS | self._generation
        for destination in destinations:
            self._destinations.close(destination)
        self._wake()

    # ── calls ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def _begin(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._end)
        return task

    def _end(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None and self.failure is None:
            self.failure = error
            self._wake()

    async def _publish(self, wave: Sequence[_Entry], *, counts: bool) -> None:
        self._reach("before publish")
        began, sent_at = self._clock.monotonic(), self._tracing.now()
        records = [entry.record for entry in wave]
        errors: Sequence[TransportError | None]
        try:
            errors = await self._transport.publish(records)
        except LogGone:
            raise
        except TransportError as error:
            errors = [error] * len(wave)
        finally:
            self._calls -= counts
        self._reach("after publish")
        self._tracing.sent(records, errors, began=sent_at)
        partitions = {entry.partition for entry in wave}
        if self._clock.monotonic() - began > SLOW:
            self._slow |= partitions
        else:
            self._slow -= partitions
        self._busy -= partitions
        self._acknowledge(wave, errors)
        self.flush()

    def _acknowledge(self, wave: Sequence[_Entry], errors: Sequence[TransportError | None]) -> None:
        failed: set[TopicPartition] = set()
        dropped: list[_Entry] = []
        positions = []
        for entry, error in zip(wave, errors, strict=True):
            if entry.partition in failed:
                dropped.append(entry)
            elif error is None:
                positions.append(entry.position)
                self._bytes -= entry.size
                self._destinations.succeed(entry.row, entry.position, entry.partition)
            else:
                if isinstance(error, LogGone):
                    raise error
                failed.add(entry.partition)
                dropped.append(entry)
                self._destinations.fail(entry.row, entry.position, entry.partition, error)
        for partition in failed & self._queues.keys():
            dropped.extend(self._queues.pop(partition))
        for entry in dropped:
            self._let_go(entry)
        self._tell_room()
        self.published += len(positions)
        self._forget(positions)
        if any(entry.was_handed_over for entry in dropped):
            self._renounce(failed)
        elif failed:
            self._wake()

    # ── what the log has ──────────────────────────────────────────────────────────────────────────────────────────

    def _forget(self, positions: Collection[int]) -> None:
        self._acknowledged.extend(positions)
        if self._acknowledged and not self._is_deleting:
            self._is_deleting = True
            self._begin(self._delete())

    async def _delete(self) -> None:
        """Delete what is acknowledged: whatever comes while one statement runs goes into the next."""
        wait = FIRST_WAIT
        try:
            while positions := self._acknowledged:
                self._acknowledged = []
                self._reach("before delete")
                try:
                    await self._outbox.delete(positions)
                except StoreGone:
                    raise
                except StoreError as error:
                    if wait == FIRST_WAIT:
                        logger.warning("what was published stays in the outbox for now: %s", error.line)
                    self._acknowledged = [*positions, *self._acknowledged]
                    await self._clock.sleep(wait)
                    wait = min(wait * 2, LONGEST_WAIT)
                    continue
                self._reach("after delete")
                wait = FIRST_WAIT
                self._in_hand.difference_update(positions)
                if self._just_deleted is not None:
                    self._just_deleted.update(positions)
                self._tell_room()
        finally:
            self._is_deleting = False


class HandOver:
    """What one transaction hands over to be published from memory."""

    def __init__(self, outgoing: Outgoing) -> None:
        self._outgoing = outgoing
        self._entries: list[_Entry] = []
        self.leaves_some = False
        """Whether rows are left to the scan."""

    def take(self, rows: Sequence[OutboxRow], appended: Sequence[Appended]) -> None:
        """The transaction is about to be committed with these rows, and holds the locks of their keys."""
        self._entries, has_all = self._outgoing.expect(rows, appended)
        self.leaves_some = not has_all

    def __enter__(self) -> HandOver:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._outgoing.commit(self._entries)
        else:
            self._outgoing.abandon(self._entries)
