"""A service at work: its nouns joined, from the first record it takes in to the last event it publishes."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from microflow.caps import Caps
from microflow.caution import Caution, Turn
from microflow.circuits import Circuits
from microflow.dead_letter_copies import Copies
from microflow.deadlines import Deadlines
from microflow.errors import DefinitionError, LogGone, StoreError, StoreGone, TransportError, misspelling
from microflow.execution import Executor
from microflow.faults import Reach, pass_by
from microflow.housekeeping import Housekeeping
from microflow.intake import Intake
from microflow.lanes import Lane
from microflow.limits import Limits
from microflow.outages import Outages
from microflow.ownership import Assignment
from microflow.parking import Parking
from microflow.partition_counts import check_partitions, is_told
from microflow.ports import Clock, Migration, Store, TopicPartition, Transport
from microflow.pressure import Pressed, Pressure
from microflow.readiness import Readiness
from microflow.registration import Registration
from microflow.relay import Relay
from microflow.reports import Observe, look_away
from microflow.runtime import Runtime
from microflow.service import Definition
from microflow.shares import Shares
from microflow.signals import Signal
from microflow.tracing import UNTRACED, Tracing
from microflow.watermarks import Watermarks

logger = logging.getLogger("microflow.worker")

DEFAULT_LIMITS = Limits()
PATIENCE_TO_CANCEL = timedelta(seconds=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What a service is run in. `owner` names this process, `chance` returns a random number in [0, 1);
    `dependencies` replace what the lifespan provides; if they are all that handlers ask for, it is not entered. The
    services of a process share a `turn`."""

    store: Store
    transport: Transport
    clock: Clock
    owner: str
    chance: Callable[[], float]
    limits: Limits = DEFAULT_LIMITS
    observe: Observe = look_away
    tracing: Tracing = UNTRACED
    reach: Reach = pass_by
    dependencies: Mapping[Any, Any] | None = None
    turn: Turn = field(default_factory=Turn)


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a running service stands: the partitions it has, of how many there are, and what its outbox holds."""

    owned: int
    partitions: int
    pending: int


class Worker:
    """Runs one built service until it is stopped or cannot go on."""

    def __init__(
        self, definition: Definition, surroundings: Surroundings, *, migrations: Sequence[Migration] = ()
    ) -> None:
        self.definition = definition
        self._surroundings = surroundings
        self._migrations = migrations
        self._entered = AsyncExitStack()
        self._lanes: list[Lane] = []
        self._stopping = False
        self._said_everything = False
        self._tasks: list[asyncio.Task[None]] = []
        self._ended = Signal(surroundings.clock)
        self._failure: BaseException | None = None

    async def start(self) -> None:
        """Migrate, bind, enter the lifespan, join the group; return when the partitions are assigned.

        Raises DefinitionError, IdentityError, StoreError and TransportError with what keeps it from starting.
        """
        try:
            await self._start()
        except BaseException:
            await self.kill()
            raise

    async def _start(self) -> None:
        surroundings, definition = self._surroundings, self.definition
        store, transport = surroundings.store, surroundings.transport
        await store.migrate(self._migrations)
        cluster_id = await transport.topics.cluster_id()
        database_id = await store.bind(cluster_id)
        self._outages = Outages(store, clock=surroundings.clock, chance=surroundings.chance)
        self._registration = Registration(
            definition,
            store,
            owner=surroundings.owner,
            clock=surroundings.clock,
            outages=self._outages,
            heartbeat=surroundings.limits.heartbeat,
            learned=self._learned,
            changed=self._processes_changed,
        )
        await self._registration.check()
        await self._ensure_topics()
        provided = await self._provide()
        await self._registration.enlist()  # nothing of the service keeps it from starting now
        runtime = self._assemble(provided)
        await self._copies.look()
        await self._relay.learn(set(definition.emitted.values()), version=self._registration.version)
        self._begin(runtime.deadlines.run(), "deadlines")
        for lane in self._lanes:
            self._begin(lane.admit(), "arrivals of a lane")
            self._begin(lane.commit(), "commits of a lane")
        self._begin(self._caution.run(), "caution")
        self._begin(self._circuits.run(), "circuits")
        self._begin(self._caps.run(), "caps")
        self._begin(self._parking.run(), "parking")
        self._begin(self._relay.watch(), "outbox watch")
        self._begin(self._parking.watch(), "parking watch")
        self._begin(self._relay.run(), "relay")
        self._begin(self._housekeeping.store_watermarks(), "watermarks")
        self._begin(self._housekeeping.purge(), "purge")
        self._begin(self._registration.keep_up(), "registration")
        self._begin(self._copies.follow(), "dead letters' topic")
        self._begin(self._parking_follows(), "rebalances")
        intake = self._begin(self._intake.run(cluster_id=cluster_id, database_id=database_id), "intake")
        joined = asyncio.get_running_loop().create_task(self._intake.joined.wait())
        await asyncio.wait([joined, intake], return_when=asyncio.FIRST_COMPLETED)
        joined.cancel()
        if self._failure is not None:
            raise self._failure

    async def ended(self) -> None:
        """Return, by raising, once the service cannot go on."""
        while self._failure is None:
            await self._ended.wait()
        raise self._failure

    async def stop(self, *, drain: timedelta) -> bool:
        """Finish what runs, within `drain`, then leave. False if something had to be left for the next start.

        Nothing in it is needed for correctness: what is cut off is done again.
        """
        if isinstance(self._failure, StoreGone | LogGone):  # there is nothing to finish in
            await self.kill()
            return False
        self._stopping = True
        clock = self._surroundings.clock
        end = clock.monotonic() + drain
        self._intake.drain()
        for lane in self._lanes:
            lane.drain()
        finished = await self._until(lambda: not any(lane.busy for lane in self._lanes), end - drain / 4)
        last_words = self._begin(self._say_last_words(), "last words")
        await self._ended_within([last_words], end - clock.monotonic())
        if not last_words.done():
            logger.warning("%s stops without its last words: no time is left", self.definition.name)
        await self.kill(leave_within=max(end - clock.monotonic(), PATIENCE_TO_CANCEL))
        return finished and self._said_everything

    async def kill(self, *, leave_within: timedelta | None = None) -> None:
        """End at once, as a crash would, but for the lifespan: it is left properly, within a time if one is given."""
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        for lane in self._lanes:
            tasks += lane.cancel()
        await self._ended_within(tasks, PATIENCE_TO_CANCEL)
        for task in tasks:
            if not task.done():
                logger.warning("%s does not end although it was cancelled, and is left behind", task.get_name())
        await self._leave_lifespan(leave_within)

    @property
    def failure(self) -> BaseException | None:
        """Why the service cannot go on, if it cannot."""
        return self._failure

    def resume_parked(self) -> None:
        """Look for parked events that are due: somebody else has parked some."""
        self._parking.wake()

    def executing(self) -> list[str]:
        """The handlers that run now."""
        return [f"{self.definition.name}.{name}" for lane in self._lanes for name in lane.executing()]

    async def idle(self) -> bool:
        """Whether nothing is left to be done until something arrives or time passes."""
        if self._intake.rebalancing or not self._caution.idle or any(not lane.idle for lane in self._lanes):
            return False
        if await self._outbox_waits() or not await self._parking.idle():
            return False
        positions = self._watermarks.positions()
        bounds = await self._surroundings.transport.topics.bounds(positions.keys())
        pressed = self._pressure.topics
        return all(
            positions[partition] >= bound.end for partition, bound in bounds.items() if partition.topic not in pressed
        )

    async def standing(self) -> Standing:
        """Where the service stands now. Raises StoreError and TransportError."""
        topics = await self._surroundings.transport.topics.describe(self.definition.topics.keys())
        status = await self._surroundings.store.outbox.status()
        owned = len(self._watermarks.positions())
        return Standing(owned, sum(topic.partitions for topic in topics.values()), status.pending)

    async def readiness(self) -> Readiness:
        """Whether the service, which has joined its group, can be given work now: its database answers and can be
        written, and it does not stop."""
        missing = []
        if self._stopping:
            missing.append("it is stopping")
        if self._outages.out:
            missing.append("its database cannot be written")
        try:
            await self._surroundings.store.time()
        except StoreError as error:
            missing.append(f"its database does not answer: {error.what}")
        return Readiness(tuple(missing), tuple(each.why for each in self.pressed()))

    def pressed(self) -> Sequence[Pressed]:
        """What holds a part of the service back: circuits that are open, caps that are reached."""
        return self._pressure.now()

    # ── putting it together ───────────────────────────────────────────────────────────────────────────────────────

    def _assemble(self, provided: Mapping[Any, Any]) -> Runtime:
        given = self._surroundings
        self._watermarks = Watermarks()
        self._relay = Relay(
            given.store.outbox,
            given.transport,
            clock=given.clock,
            owner=given.owner,
            chance=given.chance,
            batch=given.limits.relay_batch,
            in_hand=given.limits.relay_in_hand,
            from_memory=given.limits.from_memory,
            tracing=given.tracing,
            reach=given.reach,
        )
        self._circuits = Circuits(
            self.definition.handlers,
            failures=given.limits.failing_keys,
            clock=given.clock,
            chance=given.chance,
            changed=self._pressed,
        )
        self._caps = Caps(self.definition, given.store, clock=given.clock, limits=given.limits, changed=self._pressed)
        self._pressure = Pressure(self._circuits, self._caps)
        self._copies = Copies(self.definition.name, given.transport, clock=given.clock, refused=self._relay.is_refused)
        runtime = Runtime(
            definition=self.definition,
            store=given.store,
            clock=given.clock,
            chance=given.chance,
            limits=given.limits,
            executor=Executor(
                self.definition,
                provided=provided,
                clock=given.clock,
                limits=given.limits,
                tracing=given.tracing,
                max_record_bytes=given.transport.max_record_bytes,
            ),
            assignment=Assignment(gone=lambda: self._caution.look()),
            watermarks=self._watermarks,
            deadlines=Deadlines(given.clock),
            outages=self._outages,
            circuits=self._circuits,
            registration=self._registration,
            outgoing=self._relay.outgoing,
            copies=self._copies,
            tracing=given.tracing,
            observe=given.observe,
            reach=given.reach,
        )
        self._lanes = [
            Lane(
                runtime,
                committed=self._committed,
                parked=lambda: self._parking.wake(),
                emitted=self._relay.wake,
            )
            for _ in range(given.store.lanes)
        ]
        self._caution = Caution(
            runtime,
            turn=given.turn,
            open_record=lambda record: self._intake.open(record),
            take_in=lambda record: self._intake.take_in(record),
            over=self._careless,
        )
        self._intake = Intake(
            runtime,
            given.transport,
            self._lanes,
            owner=given.owner,
            caution=self._caution,
            pressure=self._pressure,
            skipped=self._moved,
        )
        self._shares = Shares(runtime, owner=given.owner, caution=self._caution, type_here=self._intake.type_here)
        self._parking = Parking(
            runtime,
            self._shares,
            reopen=self._intake.reopen,
            lane_of=self._intake.lane_of,
            caution=self._caution,
            is_rebalancing=lambda: self._intake.rebalancing,
        )
        self._housekeeping = Housekeeping(runtime, tell_offsets=self._intake.tell_offsets)
        return runtime

    def _careless(self) -> None:
        self._intake.relieve()
        self._parking.wake()

    def _pressed(self) -> None:
        self._intake.adjust()
        self._parking.wake()

    def _committed(self) -> None:
        self._caps.look()
        self._caution.look()
        self._intake.relieve()
        self._housekeeping.moved()

    def _moved(self) -> None:
        self._housekeeping.moved()

    async def _parking_follows(self) -> None:
        while True:
            await self._intake.changed.wait()
            self._registration.wake()
            self._parking.owners_changed()

    def _learned(self, watermarks: Mapping[TopicPartition, int]) -> None:
        if self._lanes:  # before that, nothing has been read
            self._intake.read_again(watermarks)

    def _processes_changed(self) -> None:
        if self._lanes:
            self._parking.owners_changed()

    async def _provide(self) -> Mapping[Any, Any]:
        given = dict(self._surroundings.dependencies or {})
        if self.definition.lifespan is None or (given and _asked_for(self.definition) <= given.keys()):
            return given
        lifespan: Any = self.definition.lifespan()
        if not isinstance(lifespan, AbstractAsyncContextManager):
            raise DefinitionError(
                f"lifespan returns {type(lifespan).__name__}, which is no async context manager.",
                where=self.definition.where,
                fix="@asynccontextmanager\n  async def lifespan(): yield {Cards: cards}",
            )
        provided = await self._entered.enter_async_context(lifespan)
        if not isinstance(provided, Mapping):
            raise DefinitionError(
                f"lifespan yields {type(provided).__name__}, and handlers are given what it maps from types.",
                where=self.definition.where,
                fix="yield {Cards: cards}",
            )
        return {**provided, **given}

    async def _leave_lifespan(self, at_most: timedelta | None) -> None:
        # In the task that has entered it: a task group, or another cancel scope, can only be left where it was entered.
        here = asyncio.current_task()
        if at_most is None or here is None:
            await self._entered.aclose()
            return
        cut_short = False

        async def cut() -> None:
            nonlocal cut_short
            await self._surroundings.clock.sleep(at_most)
            cut_short = True
            here.cancel()

        alarm = asyncio.get_running_loop().create_task(cut())
        try:
            await self._entered.aclose()
        except asyncio.CancelledError:
            if not cut_short or here.cancelling() > 1:  # somebody else wants us to end
                raise
        finally:
            alarm.cancel()
            if cut_short:
                here.uncancel()
                logger.warning("the lifespan of %s was not left in time, and is cut short", self.definition.name)

    async def _ensure_topics(self) -> None:
        topics = self._surroundings.transport.topics
        emitted = set(self.definition.emitted.values())
        missing = await topics.ensure({*self.definition.topics, *emitted})
        if unwritable := sorted(missing & emitted):
            raise DefinitionError(
                f"{self.definition.name} emits to {', '.join(unwritable)}, which the log does not have.",
                where=self.definition.where,
                fix="microflow topics apply TARGET     or create what is missing yourself",
            )
        await self._count_partitions(emitted)
        if not missing:
            return
        known = await topics.describe()
        for name in sorted(missing):
            near = misspelling(name, known)
            meant = f"; did you mean {near}?" if near else ""
            logger.warning("%s reads %s, which the log does not have yet%s", self.definition.name, name, meant)

    async def _count_partitions(self, names: set[str]) -> None:
        found = await self._surroundings.transport.topics.describe(names)
        counts = {name: topic.partitions for name, topic in found.items()}
        for name, used in sorted((await self._surroundings.store.outbox.partition_counts(counts)).items()):
            check_partitions(name, found=counts[name], used=used)
            if counts[name] > used:
                logger.info("%s: %s", self.definition.name, is_told(name, found=counts[name], used=used))

    # ── its tasks ─────────────────────────────────────────────────────────────────────────────────────────────────

    def _begin(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work, name=f"{self.definition.name} {name}")
        task.add_done_callback(self._note_end)
        self._tasks.append(task)
        return task

    def _note_end(self, task: asyncio.Task[None]) -> None:
        if task.cancelled() or task.exception() is None:
            return
        if self._failure is None:
            self._failure = task.exception()
        self._ended.set()

    async def _outbox_waits(self) -> bool:
        return bool(await self._surroundings.store.outbox.pending(after=-1, limit=1))

    async def _say_last_words(self) -> None:
        """Leave the group, store what is known and publish what is committed."""
        try:
            await self._shares.give_all_back()
            await self._registration.leave()  # first: those who get our partitions know what nobody has any more
            await self._housekeeping.store_watermarks_now()
            await self._intake.stop()
            everything = await self._relay.flush()
            await self._relay.release()
            self._said_everything = everything
        except (StoreError, TransportError) as error:
            logger.warning("%s stops without its last words: %s", self.definition.name, error)

    async def _ended_within(self, tasks: Sequence[asyncio.Task[Any]], duration: timedelta) -> None:
        """Wait until tasks have ended, whatever became of them, but not longer."""
        if not any(not task.done() for task in tasks):
            return
        alarm = asyncio.get_running_loop().create_task(self._surroundings.clock.sleep(duration))
        try:
            while not alarm.done() and (running := {task for task in tasks if not task.done()}):
                await asyncio.wait({*running, alarm}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            alarm.cancel()

    async def _until(self, condition: Callable[[], bool], end: timedelta) -> bool:
        clock = self._surroundings.clock
        while not condition():
            if clock.monotonic() >= end:
                return False
            await clock.sleep(timedelta(milliseconds=5))
        return True


def _asked_for(definition: Definition) -> set[Any]:
    """Everything that the handlers of a service cannot do without."""
    return {
        parameter.key
        for handler in definition.handlers
        for parameter in handler.parameters
        if parameter.asks_for == "dependency" and not parameter.optional
    }
