"""A lane: its keys in sequence. Executes what may run, commits what is finished, and never lets the two wait for
each other: one slow call delays its own key only.

An execution of a key starts when every earlier one of that key has committed, or has finished successfully without
the transaction's connection; the results are committed in the order of the key.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections import deque
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta

from microflow.adoption import Adoption, end
from microflow.atomic_step import AtomicStep, Settled
from microflow.dead_letters import attempts_of
from microflow.deliveries import FINISHED, RUNNING, WAITING, Execution, Failed, Inside, Postponed, Succeeded
from microflow.errors import HandlerTimeout
from microflow.execution import AT_ONCE, is_cancelled
from microflow.handlers import Handler
from microflow.key_queues import KeyQueue
from microflow.ports import Blocked, ClaimKey, OrderingKey, TopicPartition
from microflow.reports import Emission, Report, ReportedOutcome, look_away
from microflow.runtime import Runtime
from microflow.signals import Signal

NO_TIME = timedelta(0)


class Lane:
    """One queue of keys over all topics and partitions, with one transaction at a time.

    `committed` is called after each transaction, `parked` when it changed the parked rows, `emitted` when it left
    something in the outbox that was not handed over.
    """

    def __init__(
        self,
        runtime: Runtime,
        *,
        committed: Callable[[], None],
        parked: Callable[[], None],
        emitted: Callable[[], None],
    ) -> None:
        self._runtime = runtime
        self._circuits = runtime.circuits
        self._step = AtomicStep(runtime, failed=self._look_again)
        self._committed = committed
        self._parked = parked
        self._emitted = emitted
        self._arrived = Signal(runtime.clock)
        self._ready = Signal(runtime.clock)
        self._admitting = asyncio.Lock()
        self._committing = asyncio.Lock()
        self._unsure: set[OrderingKey] = set()
        self._mailbox: deque[Execution] = deque()
        self._queues: dict[OrderingKey | bytes, KeyQueue] = {}
        self._adoption = Adoption(
            runtime.assignment,
            submit=self.submit,
            remove=self._remove,
            finish=self._finish,
            dropped=self._tell_dropped,
        )
        self._runnable: deque[Execution] = deque()
        self._tasks: dict[Execution, asyncio.Task[None]] = {}
        self._finished: deque[Execution] = deque()
        self._variables = contextvars.copy_context()
        self._sequence = 0
        self._draining = False

    @property
    def idle(self) -> bool:
        """Whether nothing is left to be done here."""
        if self._mailbox or self._admitting.locked() or self.busy:
            return False
        return not self._adoption.is_anything_under_way or self._circuits.hold(self._queues)

    @property
    def busy(self) -> bool:
        """Whether something runs, or has run and is not committed."""
        return bool(self._tasks or self._finished or self._committing.locked())

    def executing(self) -> list[str]:
        """The handlers that run now, each as often as it runs."""
        return [execution.claim_key.handler for execution in self._tasks]

    def submit(self, executions: Iterable[Execution]) -> None:
        """Take the executions of a delivery, in the order in which their events stand in the log."""
        self._mailbox.extend(executions)
        self._arrived.set()

    async def admit(self) -> None:
        """Let what arrives begin, until cancelled; while a transaction is open, too."""
        while True:
            await self._arrived.wait()
            while self._mailbox:
                async with self._admitting:
                    await self._admit()

    async def commit(self) -> None:
        """Commit what is finished, until cancelled."""
        while True:
            await self._ready.wait()
            while self._finished:
                await self._let_run()
                async with self._committing:
                    if batch := self._gather():
                        self._settle(batch, await self._step.commit(batch))

    async def _let_run(self) -> None:
        """Let executions begin, and those follow that wait for a place, as long as each turn of the loop ends some."""
        while True:
            before = len(self._finished)
            await self._runtime.clock.sleep(NO_TIME)
            if not (self._runnable and before < len(self._finished) < self._runtime.limits.batch):
                return

    def drain(self) -> None:
        """Start nothing any more; what runs may finish and is committed."""
        self._draining = True
        end(self._mailbox)
        self._mailbox.clear()
        self._runnable.clear()

    def cancel(self) -> list[asyncio.Task[None]]:
        """Cancel what runs, and return it."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel(AT_ONCE)
        return tasks

    def detach(self, partitions: Collection[TopicPartition]) -> None:
        """Partitions are read again: their offsets are finished by what is read then, not by what is here."""
        here = [*self._mailbox, *(each for queue in self._queues.values() for each in queue.executions)]
        for execution in here:
            for each in (execution, *execution.repeats):
                each.delivery.detached = each.delivery.detached or each.delivery.home in partitions

    # ── partitions come and go ────────────────────────────────────────────────────────────────────────────────────

    @asynccontextmanager
    async def between_transactions(self) -> AsyncIterator[None]:
        """Wait for the open transaction, if there is one; let none begin meanwhile, and nothing arrive."""
        async with self._admitting, self._committing:
            yield

    def drop(self, partitions: Collection[TopicPartition]) -> None:
        """Partitions were taken away: what waits is forgotten, what runs becomes an orphan and keeps its key closed."""
        end(each for each in self._mailbox if each.delivery.home in partitions)
        self._mailbox = deque(each for each in self._mailbox if each.delivery.home not in partitions)
        self._finished = deque(each for each in self._finished if each.delivery.home not in partitions)
        self._runnable = deque(each for each in self._runnable if each.delivery.home not in partitions)
        self._adoption.lose(partitions, running=self._tasks.keys())

    def keep(self, starts: Mapping[TopicPartition, int], *, others: Collection[TopicPartition]) -> None:
        """The partitions of a new assignment, where they are read from, and which are not those that they were: who is
        an orphan of what does not come back waits in vain."""
        self._adoption.keep(starts, others=others)
        for name in tuple(self._queues):  # something may have waited for one that was dropped
            self._advance(name)

    def _tell_dropped(self, orphan: Execution) -> None:
        self._report(orphan, "dropped")
        if orphan.parked is not None:
            self._parked()
        self._advance(orphan.delivery.queue)

    # ── admission ─────────────────────────────────────────────────────────────────────────────────────────────────

    async def _admit(self) -> None:
        arrived = [self._mailbox.popleft() for _ in range(min(len(self._mailbox), self._runtime.limits.batch))]
        if not arrived:
            return
        seen, blocked = await self._look_up(arrived)
        touched: dict[OrderingKey | bytes, None] = {}
        for execution in arrived:
            if not self._runtime.assignment.owns(execution.delivery.home):
                execution.ended = True
                continue
            if execution.parked is None and (content := seen.get(execution.claim_key)) is not None:
                self._settled_elsewhere(execution, diverged=content != execution.delivery.envelope.content)
                continue
            name = execution.delivery.queue
            holding = blocked.get(name) if isinstance(name, OrderingKey) else None
            if self._adoption.joins(execution, holding):
                continue
            if (before := self._queues.get(name)) is not None:
                self._adoption.make_way(execution, before.executions)
            queue = self._queues.setdefault(name, KeyQueue())
            if name not in touched:
                queue.learn(holding)
                touched[name] = None
            self._sequence += 1
            execution.sequence = self._sequence
            self._adoption.begin(execution)
            queue.executions.append(execution)
        for name in touched:
            self._advance(name)
        if len(seen) > 0:
            self._committed()  # by somebody, but it is the same to those who wait for it

    async def _look_up(
        self, arrived: Sequence[Execution]
    ) -> tuple[Mapping[ClaimKey, bytes], Mapping[OrderingKey, Blocked]]:
        """Which of the events that arrive are known already, and what of their keys is parked."""
        store, insist = self._runtime.store, self._runtime.outages.insist
        fresh = [each.claim_key for each in arrived if each.parked is None]
        keys = {each.delivery.ordering for each in arrived if each.delivery.ordering is not None}
        self._unsure.clear()
        seen, blocked = await insist(lambda: store.look_up(fresh, keys))
        if again := [each.claim_key for each in arrived if each.delivery.sent_again and each.claim_key in seen]:
            await insist(lambda: self._redrive(again))
        while unsure := self._unsure & keys:  # a transaction has ended since, which may have parked some
            self._unsure.clear()
            now = await insist(lambda: store.parking.blocked(unsure))
            blocked = {key: each for key, each in blocked.items() if key not in unsure} | dict(now)
        return seen, blocked

    async def _redrive(self, claims: Collection[ClaimKey]) -> None:
        """Somebody has sent events again for handlers that gave them up: the dead letters go back to those."""
        dead_letters = self._runtime.store.dead_letters
        found = await dead_letters.of(claims)
        if found and await dead_letters.redrive(set(found.values()), now=self._runtime.clock.now()):
            self._parked()

    def _settled_elsewhere(self, execution: Execution, *, diverged: bool) -> None:
        execution.ended = True
        self._finish_delivery(execution)
        self._report(execution, "duplicate", diverged=diverged)
        self._adoption.settled_elsewhere(execution)

    # ── execution ─────────────────────────────────────────────────────────────────────────────────────────────────

    def _advance(self, name: OrderingKey | bytes) -> None:
        """Start whatever may start of a key now."""
        queue = self._queues.get(name)
        while queue is not None and not self._draining and (execution := queue.next()) is not None:
            if execution.outcome is not None:  # given: there is nothing to run
                if execution.parks:
                    queue.block(execution)
                self._finish(execution)
            elif self._circuits.open and self._circuits.bars(
                execution, self._advance, may_try=not queue.blocks(execution)
            ):
                return
            elif queue.blocks(execution):
                execution.outcome = Postponed(self._runtime.clock.now(), narrow=queue.narrows(execution))
                queue.block(execution)
                self._finish(execution)
            elif execution.handler is not None and execution.handler.asks_for_connection:
                execution.outcome = Inside()
                self._finish(execution)
            else:
                execution.state = RUNNING
                self._runnable.append(execution)
                self._start()

    def _finish(self, execution: Execution) -> None:
        execution.state = FINISHED
        self._finished.append(execution)
        self._ready.set()

    def _start(self) -> None:
        while self._runnable and len(self._tasks) < self._runtime.limits.concurrency:
            execution = self._runnable.popleft()
            if self._circuits.open and self._circuits.bars(execution, self._advance):
                execution.wait_again()
                continue
            # In a context of its own: what a handler leaves in its variables must not be the next one's.
            task = asyncio.get_running_loop().create_task(self._execute(execution), context=self._variables.copy())
            self._tasks[execution] = task
            assert execution.handler is not None
            self._runtime.deadlines.watch(task, execution.handler.deadline or self._runtime.limits.deadline)

    async def _execute(self, execution: Execution) -> None:
        runtime, handler = self._runtime, execution.handler
        assert handler is not None
        is_observed = runtime.observe is not look_away
        started = runtime.clock.monotonic() if is_observed else NO_TIME
        task = self._tasks[execution]
        trace = runtime.begin_attempt(execution)
        outcome: Succeeded | Failed
        try:
            runtime.reach("before handler")
            outcome = await runtime.executor.execute(
                handler, execution.delivery, attempt=execution.attempt, trace=trace
            )
            runtime.reach("after handler")
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # a panic of a library in Rust is no Exception; here it is an attempt
            if runtime.deadlines.forget(task, handler):
                outcome = runtime.judge(execution, self._too_late(handler))
            elif isinstance(error, asyncio.CancelledError) and is_cancelled():
                raise
            else:
                outcome = runtime.judge(execution, error)
        else:
            if runtime.deadlines.forget(task, handler):  # it has caught its cancellation, and returned what it had
                outcome = runtime.judge(execution, self._too_late(handler))
        finally:
            del self._tasks[execution]
        if trace is not None:
            trace.returned()
        if is_observed:
            execution.took = runtime.clock.monotonic() - started
        self._take_outcome(execution, outcome)
        self._advance(execution.delivery.queue)
        self._start()

    def _too_late(self, handler: Handler) -> HandlerTimeout:
        limit = handler.deadline or self._runtime.limits.deadline
        return HandlerTimeout(
            f"{handler.name} ran longer than its deadline of {limit.total_seconds():g} s.", where=handler.where
        )

    def _take_outcome(self, execution: Execution, outcome: Succeeded | Failed) -> None:
        execution.outcome = outcome
        execution.state = FINISHED
        if isinstance(outcome, Failed):
            self._circuits.failed(execution, outcome)
        else:
            self._circuits.ran(execution)
        if execution.orphan:
            self._adoption.outlived(execution)
        elif execution.recalled:
            execution.wait_again()
        else:
            self._finish(execution)

    # ── commitment ────────────────────────────────────────────────────────────────────────────────────────────────

    def _gather(self) -> list[Execution]:
        """What is finished, as far as it fits into one transaction. Nobody waits for what still runs."""
        return [self._finished.popleft() for _ in range(min(len(self._finished), self._runtime.limits.batch))]

    def _settle(self, batch: list[Execution], settled: Settled) -> None:
        for execution in settled.failed:
            self._recall_behind(execution)
        for execution in settled.committed:
            self._conclude(execution, _outcome_of(execution))
        for execution in settled.duplicates:
            self._conclude(execution, "duplicate")
        for execution in settled.unwanted:
            self._conclude(execution, "dropped")
        concluded = {*settled.committed, *settled.duplicates, *settled.unwanted, *settled.reset}
        for execution in batch:
            if execution not in concluded:  # its partition is another process's now
                execution.orphan = True
                if execution.delivery.home != execution.delivery.source:  # a share does not come back by itself
                    self._adoption.outlived(execution)
        self._committed()
        if settled.leaves_outbox:
            self._emitted()
        if any(
            execution.parked is not None or isinstance(execution.outcome, Failed | Postponed) for execution in concluded
        ):
            self._parked()
        self._circuits.learn(settled.committed)
        for name in dict.fromkeys(execution.delivery.queue for execution in batch):
            self._advance(name)

    def _look_again(self, failed: Execution) -> None:
        """One has failed in its transaction: whoever is behind it waits until that is committed."""
        if (queue := self._queues.get(failed.delivery.queue)) is not None:
            queue.look_again()

    def _recall_behind(self, failed: Execution) -> None:
        """What has started behind one that failed in its transaction waits again; what runs, as soon as it ends."""
        queue = self._queues.get(failed.delivery.queue)
        for execution in queue.behind(failed) if queue is not None else ():
            if execution in self._tasks:
                execution.recalled = True
            elif execution.state is not WAITING and not execution.orphan:
                execution.wait_again()
        self._runnable = deque(each for each in self._runnable if each.state is RUNNING)
        self._finished = deque(each for each in self._finished if each.state is FINISHED)

    def _conclude(self, execution: Execution, outcome: ReportedOutcome) -> None:
        changes_parked = execution.parks or execution.parked is not None
        if changes_parked and execution.delivery.ordering is not None and self._admitting.locked():
            self._unsure.add(execution.delivery.ordering)
        # A duplicate parks, too: its row may be what a commit left whose answer was lost.
        self._remove(execution, parked=execution.parks)
        self._finish_delivery(execution)
        self._report(execution, outcome)
        end(execution.repeats)
        for repeat in execution.repeats:
            self._finish_delivery(repeat)
            diverged = repeat.delivery.envelope.content != execution.delivery.envelope.content
            self._report(repeat, "duplicate", diverged=diverged)

    def _remove(self, execution: Execution, *, parked: bool = False) -> None:
        name = execution.delivery.queue
        execution.ended = True
        self._adoption.end(execution)
        queue = self._queues.get(name)
        if queue is None:
            return
        queue.remove(execution)
        if parked:
            queue.block(execution)
        if not queue.executions:
            del self._queues[name]

    def _finish_delivery(self, execution: Execution) -> None:
        delivery = execution.delivery
        delivery.unsettled -= 1
        if delivery.unsettled == 0 and not delivery.detached:
            self._runtime.watermarks.finish(delivery.source, delivery.record.offset)

    def _report(self, execution: Execution, outcome: ReportedOutcome, *, diverged: bool = False) -> None:
        runtime, delivery, ended = self._runtime, execution.delivery, execution.outcome
        error = ended.error if isinstance(ended, Failed) else None
        if execution.trace is not None:
            execution.trace.end(outcome, error)
            execution.trace = None
        if runtime.observe is look_away:
            return
        retry_in = ended.due - ended.at if isinstance(ended, Failed) and ended.due is not None else None
        sealed = ended.sealed if isinstance(ended, Succeeded) and outcome == "done" else ()
        runtime.observe(
            Report(
                service=runtime.definition.name,
                handler=execution.claim_key.handler,
                where=execution.handler.where if execution.handler else "",
                outcome=outcome,
                event_type=delivery.envelope.type,
                event_id=delivery.envelope.id,
                flow=delivery.envelope.correlation_id,
                causation_id=delivery.envelope.causation_id,
                record=delivery.record,
                attempt=execution.attempt,
                attempts=attempts_of(execution, error, runtime.definition.retry),
                took=execution.took,
                emitted=tuple(Emission(type=each.type, id=each.id, topic=each.topic) for each in sealed),
                error=error,
                retry_in=retry_in,
                diverged=diverged,
            )
        )


def _outcome_of(execution: Execution) -> ReportedOutcome:
    match execution.outcome:
        case Failed(due=None):
            return "dead"
        case Failed():
            return "retry"
        case Postponed():
            return "waiting"
        case _:
            return "done"
