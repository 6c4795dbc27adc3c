"""The atomic step: what finished executions leave behind is committed in one transaction, or none of it is."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from itertools import groupby

from microflow.context import Write
from microflow.dead_letters import dead_letter_of, describe
from microflow.deliveries import Delivery, Execution, Failed, Inside, Postponed, Succeeded
from microflow.errors import Fenced, HandlerTimeout, IntegrityViolation, RegistryChanged, StoreError
from microflow.execution import is_cancelled, watch_wait
from microflow.handlers import Handler, Trigger
from microflow.outages import TRANSIENT_TRIES
from microflow.ports import Changes, OrderingKey, OutboxRow, Parked, TopicPartition, Transaction
from microflow.runtime import Runtime


@dataclass(slots=True)
class Settled:
    """What became of a batch. `failed` are those of the committed ones whose failure showed in the transaction, and
    `reset` those that had run behind one: they wait again. `unwanted` were to be parked for a stranger that is gone."""

    committed: list[Execution] = field(default_factory=list)
    duplicates: list[Execution] = field(default_factory=list)
    failed: list[Execution] = field(default_factory=list)
    reset: list[Execution] = field(default_factory=list)
    unwanted: list[Execution] = field(default_factory=list)
    leaves_outbox: bool = False
    """Whether something was emitted that a scan has to find."""


class _HandlerFailed(Exception):
    """A handler's write, or the handler itself, failed inside the transaction.

    `origin` is what the store said first, whatever the handler has made of it.
    """

    def __init__(self, execution: Execution, error: BaseException, *, origin: StoreError | None = None) -> None:
        super().__init__(describe(error))
        self.execution = execution
        self.error = error
        self.origin = origin or error


class _WritesFailed(Exception):
    """One of the writes that were sent together failed; which one shows when each is sent by itself."""

    def __init__(self, origin: BaseException) -> None:
        super().__init__(describe(origin))
        self.origin = origin


class AtomicStep:
    """Commits batches of finished executions of partitions that this process owns.

    `failed` is called for one that fails in its transaction, before anything else can happen.
    """

    def __init__(self, runtime: Runtime, *, failed: Callable[[Execution], None]) -> None:
        self._runtime = runtime
        self._tell_failed = failed

    async def commit(self, batch: Sequence[Execution]) -> Settled:
        """Commit a batch, through outages and passing errors, without the executions that fail in it.

        One that fails is committed as a failure; those of its key behind it are reset. What belongs to a partition
        that another process owns by now is in none of the lists.
        """
        settled = Settled()
        parts = [list(batch)]
        tries = 0
        together = True
        while parts:
            part = parts[0] = self._left_of(parts[0], settled)
            try:
                if part:
                    await self._transact(part, settled, together=together)
                parts.pop(0)
                tries, together = 0, True
            except Fenced as fenced:
                self._runtime.assignment.lose(TopicPartition(*each) for each in fenced.partitions)
            except RegistryChanged:
                await self._runtime.registration.catch_up()
            except (_WritesFailed, _HandlerFailed) as failure:
                if await self._passes(failure.origin, tries):
                    tries += 1
                    continue
                tries, together = 0, isinstance(failure, _HandlerFailed)
                if isinstance(failure, _HandlerFailed):
                    self._take_out(parts, failure.execution, failure.error, settled)
            except StoreError as error:
                # A constraint that is checked at the commit will not be satisfied by trying again.
                if await self._passes(error, tries, may_pass=not isinstance(error, IntegrityViolation)):
                    tries += 1
                    continue
                tries = 0
                if len(part) > 1:  # whose fault it is shows when it is alone
                    parts[0:1] = [part[: len(part) // 2], part[len(part) // 2 :]]
                elif isinstance(part[0].outcome, Failed | Postponed):
                    raise  # not even its failure can be written, and the database is well
                else:
                    self._take_out(parts, part[0], error, settled)
        return settled

    def _left_of(self, part: Sequence[Execution], settled: Settled) -> list[Execution]:
        """What can still be committed, after what has happened since the batch was formed."""
        left = []
        for execution in part:
            if not self._runtime.assignment.owns(execution.delivery.home):
                continue
            if execution.stranger and self._is_unwanted(execution):
                settled.unwanted.append(execution)
            elif isinstance(execution.outcome, Inside) and self._runtime.circuits.bars(execution):
                execution.wait_again()
                settled.reset.append(execution)
            else:
                left.append(execution)
        return left

    def _is_unwanted(self, stranger: Execution) -> bool:
        delivery = stranger.delivery
        trigger = Trigger(delivery.envelope.type, delivery.record.topic)
        return not self._runtime.registration.is_stranger(stranger.stranger, trigger)

    # ── one transaction ───────────────────────────────────────────────────────────────────────────────────────────

    async def _transact(self, part: Sequence[Execution], settled: Settled, *, together: bool) -> None:
        runtime = self._runtime
        # Together: what is finished, and the version under which it was known who wants to see it.
        version = runtime.registration.version
        ended = _ended_deliveries(part)
        changes = Changes(
            watermarks=runtime.watermarks.after(_finished_offsets(part, ended)),
            cleared=[each.mark for each in ended if each.mark is not None],
        )
        inside: dict[Execution, Succeeded] = {}
        runtime.reach("before transaction")
        with runtime.outgoing.handing_over(version=version) as hand_over:
            async with runtime.store.transaction(pause=self._longest_pause(part)) as transaction:
                granted = await self._fill(transaction, part, changes, inside, version=version, together=together)
                runtime.reach("before outbox")
                hand_over.take(changes.outbox, await transaction.write(changes))
                runtime.reach("after outbox")
                runtime.reach("before commit")
            runtime.reach("after commit")
        for execution, outcome in inside.items():
            execution.outcome = outcome
        runtime.watermarks.stored(changes.watermarks)
        for delivery in ended:
            delivery.mark = None
        settled.committed.extend(each for each, is_ours in zip(part, granted, strict=True) if is_ours)
        settled.duplicates.extend(each for each, is_ours in zip(part, granted, strict=True) if not is_ours)
        settled.leaves_outbox = settled.leaves_outbox or hand_over.leaves_some

    async def _fill(
        self,
        transaction: Transaction,
        part: Sequence[Execution],
        changes: Changes,
        inside: dict[Execution, Succeeded],
        *,
        version: int,
        together: bool,
    ) -> Sequence[bool]:
        """Do in a transaction all but its last write, which gets what `changes` collects; return who was granted."""
        runtime = self._runtime
        epochs = runtime.assignment.epochs({each.delivery.home for each in part})
        await transaction.fence(epochs, registry=version, keys=_emitted_keys(part, copies=runtime.copies.topic))
        runtime.reach("before claim")
        granted = await transaction.claim([each.claim() for each in part], now=runtime.clock.now())
        runtime.reach("after claim")
        live = [each for each, is_ours in zip(part, granted, strict=True) if is_ours]
        await self._write_kept(transaction, live, together=together)
        for execution in live:
            if isinstance(execution.outcome, Inside):
                inside[execution] = await self._run_inside(transaction, execution)
        now = runtime.clock.now()
        for execution in live:
            self._collect(changes, execution, inside.get(execution), now=now)
        return granted

    def _longest_pause(self, part: Iterable[Execution]) -> timedelta | None:
        """How long handlers may have the transaction without saying anything; None if none of them gets it."""
        asking = [each.handler for each in part if isinstance(each.outcome, Inside) and each.handler is not None]
        return max(map(self._deadline_inside, asking), default=None)

    def _deadline_inside(self, handler: Handler) -> timedelta:
        limits = self._runtime.limits
        return min(handler.deadline or limits.deadline, limits.connection_deadline)

    async def _write_kept(self, transaction: Transaction, live: Iterable[Execution], *, together: bool) -> None:
        """The kept writes of handlers that have run, in the order of their events: those that are alike in one go."""
        in_order = sorted(live, key=lambda each: each.sequence)
        writes = [
            (each, write) for each in in_order if isinstance(each.outcome, Succeeded) for write in each.outcome.writes
        ]
        for sql, alike in groupby(writes, key=lambda each: each[1].sql):
            group = list(alike)
            if together and len(group) > 1:
                try:
                    await transaction.connection.executemany(sql, [write.args for _, write in group])
                except Exception as error:  # their arguments are the user's, so it may be anything
                    raise _WritesFailed(error) from error
                continue
            for execution, write in group:
                await self._write(transaction, execution, [write])

    async def _write(self, transaction: Transaction, execution: Execution, writes: Iterable[Write]) -> None:
        for write in writes:
            try:
                await transaction.connection.execute(write.sql, *write.args)
            except Exception as error:  # its arguments are the user's, so it may be anything
                if isinstance(error, StoreError) and error.where is None:
                    error.where = f"{write.file}:{write.line}"
                raise _HandlerFailed(execution, error) from error

    async def _run_inside(self, transaction: Transaction, execution: Execution) -> Succeeded:
        runtime, handler = self._runtime, execution.handler
        assert handler is not None
        started = runtime.clock.monotonic()
        loop = asyncio.get_running_loop()
        runtime.reach("before handler")
        trace = runtime.begin_attempt(execution)
        task = loop.create_task(
            runtime.executor.execute(
                handler, execution.delivery, attempt=execution.attempt, trace=trace, transaction=transaction
            )
        )
        runtime.deadlines.watch(task, self._deadline_inside(handler))
        watcher = loop.create_task(watch_wait(task, handler, runtime.clock, runtime.limits.foreign_wait))
        too_late = HandlerTimeout(f"{handler.name} held its transaction open past its deadline.", where=handler.where)
        try:
            outcome = await _result(task)
        except BaseException as error:
            if runtime.deadlines.forget(task, handler):
                raise _HandlerFailed(execution, too_late) from error
            if is_cancelled():
                raise
            raise _HandlerFailed(execution, error, origin=transaction.failure) from error
        else:
            if runtime.deadlines.forget(task, handler):  # it has caught its cancellation, and returned what it had
                raise _HandlerFailed(execution, too_late)
        finally:
            runtime.deadlines.forget(task, handler)
            watcher.cancel()
            execution.took = runtime.clock.monotonic() - started
            if trace is not None:
                trace.returned()
        runtime.reach("after handler")
        # An error that the handler swallowed has spoilt the transaction on PostgreSQL, so it fails here as well.
        if transaction.failure is not None:
            raise _HandlerFailed(execution, transaction.failure)
        await self._write(transaction, execution, outcome.writes)
        runtime.circuits.ran(execution)
        return outcome

    def _collect(self, changes: Changes, execution: Execution, inside: Succeeded | None, *, now: datetime) -> None:
        match inside or execution.outcome:
            case Succeeded(sealed=sealed):
                publisher_of = self._runtime.outgoing.publisher_of
                for each in sealed:
                    publisher = publisher_of(each.topic, each.key, each.headers)
                    row = OutboxRow(each.topic, each.key, each.value, each.headers, now, publisher=publisher)
                    changes.outbox.append(row)
            case Postponed():
                changes.parked.append(parked_row(execution))
            case Failed(due=None) as failed:
                letter = dead_letter_of(execution, failed)
                changes.dead_letters.append(letter)
                if (copy := self._runtime.copies.copy_of(letter)) is not None:
                    changes.outbox.append(copy)
                if execution.halts:
                    changes.parked.append(parked_row(execution))
            case Failed():
                changes.parked.append(parked_row(execution))

    # ── what failed ───────────────────────────────────────────────────────────────────────────────────────────────

    async def _passes(self, error: BaseException, tries: int, *, may_pass: bool = False) -> bool:
        """Whether to do the same again: the store was away, or the error is one that a fresh connection may not see."""
        if not isinstance(error, StoreError):
            return False
        if await self._runtime.outages.cut():
            return True
        if (may_pass or error.transient) and tries < TRANSIENT_TRIES:
            await self._runtime.outages.pause(tries + 1)
            return True
        return False

    def _take_out(
        self, parts: list[list[Execution]], failed: Execution, error: BaseException, settled: Settled
    ) -> None:
        settled.failed.append(failed)
        returned = isinstance(failed.outcome, Succeeded)
        failed.outcome = outcome = self._runtime.judge(failed, error)
        self._runtime.circuits.failed(failed, outcome, returned=returned)
        for part in parts:
            behind = {each for each in part if _is_behind(each, failed)}
            part[:] = [each for each in part if each not in behind]
            for execution in behind:
                execution.wait_again()
            settled.reset.extend(behind)
        self._tell_failed(failed)


def parked_row(execution: Execution) -> Parked:
    """The row of an execution that is to be parked: after a failed attempt, or behind an event of its key."""
    delivery, before = execution.delivery, execution.parked
    row = Parked(
        claim=execution.claim_key,
        record=delivery.record,
        order=execution.order,
        attempt=before.attempt if before else 0,
        due=None,
        content=delivery.envelope.content,
        error=before.error if before else "",
        first_failed_at=before.first_failed_at if before else None,
    )
    match execution.outcome:
        case Postponed(at):
            return replace(row, due=at)
        case Failed(error, at, due):
            first = row.first_failed_at or at
            return replace(row, attempt=execution.attempt, due=due, error=describe(error), first_failed_at=first)
        case outcome:
            raise AssertionError(f"{outcome} is not parked")


async def _result(task: asyncio.Task[Succeeded]) -> Succeeded:
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        if not task.done():  # we are cancelled, not the handler: it must not outlive its transaction
            task.cancel()
            await asyncio.wait([task])
        raise


def _is_behind(execution: Execution, failed: Execution) -> bool:
    ordering = failed.delivery.ordering
    return ordering is not None and execution.delivery.ordering == ordering and execution.sequence > failed.sequence


def _emitted_keys(part: Collection[Execution], *, copies: str) -> set[OrderingKey]:
    """The topics and keys of what is emitted, as far as it is known before the handlers inside have run.

    `copies` is the topic that dead letters are copied to.
    """
    keys: set[OrderingKey] = set()
    for execution in part:
        match execution.outcome:
            case Succeeded(sealed=sealed):
                for each in sealed:
                    if each.key is not None:
                        keys.add(OrderingKey(each.topic, each.key))
            case Failed(due=None) if (key := execution.delivery.record.key) is not None:
                keys.add(OrderingKey(copies, key))
    return keys


def _ended_deliveries(part: Collection[Execution]) -> list[Delivery]:
    """Those of which nothing is left to be done once these executions are settled."""
    settled: dict[int, int] = {}
    ended = []
    for execution in part:
        delivery = execution.delivery
        if (unsettled := delivery.unsettled) != 1:  # hardly ever: it has several handlers
            settled[id(delivery)] = count = settled.get(id(delivery), 0) + 1
            if count != unsettled:
                continue
        ended.append(delivery)
    return ended


def _finished_offsets(part: Collection[Execution], ended: Collection[Delivery]) -> dict[TopicPartition, set[int]]:
    """The offsets that are finished with these deliveries, for all partitions that executions touch."""
    offsets: dict[TopicPartition, set[int]] = {home: set() for home in {execution.delivery.home for execution in part}}
    for delivery in ended:
        if not delivery.detached:
            offsets[delivery.source].add(delivery.record.offset)
    return offsets
