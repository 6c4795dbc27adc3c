"""Backfill: a handler is given what its topics held before it began to read them.

What it has not claimed yet is parked for it, due now, in the order of the log. Whoever runs the service then handles it
like any parked event, with its retries, claims and dead letters; later events of a key wait for this handler only.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from microflow.dead_letter_copies import redriven_for
from microflow.envelopes import only_type, open_envelope, origin_of
from microflow.errors import DecodeError, MicroflowError, RegistryChanged, StoreError, TargetError, nearest
from microflow.handlers import Trigger
from microflow.log_replay import Replay, Stretch
from microflow.ports import (
    Bounds,
    Changes,
    Claim,
    ClaimKey,
    Clock,
    Parked,
    Record,
    Registered,
    Registry,
    Store,
    Topic,
    TopicPartition,
    Transport,
)

AT_ONCE = 500
TRIES = 5
PAUSE = timedelta(seconds=1)
PATIENCE = 30
"""So many times in a row the log may have nothing to say, each a pause long, before that is an error."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is read for a handler, and how.

    `triggers` says from which offset of each partition it reads each type itself. `types` are those that the service
    handles of a topic, `origins` the sources of records that bring no id. `notes` tell what of its topics cannot be
    read, `disorder` why events of a key may come in another order than that of the log: "" if they do not.
    """

    service: str
    handler: str
    triggers: Mapping[Trigger, Mapping[int, int]]
    stretches: Mapping[TopicPartition, Stretch]
    types: Mapping[str, frozenset[str]]
    origins: Mapping[str, str]
    notes: tuple[str, ...]
    disorder: str

    @property
    def records(self) -> Mapping[str, int]:
        """How many records are read of each topic, as far as offsets tell."""
        counts = dict.fromkeys(sorted({trigger.topic for trigger in self.triggers}), 0)
        for partition, (first, until) in self.stretches.items():
            counts[partition.topic] += until - first
        return counts


@dataclass(slots=True)
class Done:
    """How far a backfill is: records read, events handed over, those that the handler had claimed already, and records
    whose headers cannot be read: they were given up when the service read them."""

    read: int = 0
    handed_over: int = 0
    known: int = 0
    unreadable: int = 0


async def plan_backfill(
    service: str,
    handler: str,
    store: Store,
    transport: Transport,
    *,
    since: datetime | None,
    written: Collection[str],
    now: datetime,
) -> Plan:
    """Find out what a handler's topics held before it began to read them, or of that what is not older than `since`.

    `written` are the handlers that the service has by its code, where that is known. Raises TargetError for a handler
    that is not registered.
    """
    registry = await store.handlers.registry(now=now)
    if handler in written and handler not in registry.handlers:
        raise TargetError(
            f"{handler} of {service} has not run yet.",
            why="When it first does, it begins where the service has got to in its topics; of a topic that the service "
            "has not read before it is given everything that is there, without a backfill.",
            fix=f"Run {service} with it once, then the same again.",
        )
    triggers = _registered(registry, service, handler).triggers
    ends = _ends(triggers)
    topics = await transport.topics.describe({trigger.topic for trigger in triggers})
    bounds = await transport.topics.bounds([each for each in ends if each.topic in topics])
    firsts = await transport.topics.offsets_at(bounds.keys(), since) if since is not None and bounds else {}
    others = await _recreated(store, topics)
    stretches = {
        partition: Stretch(first, until)
        for partition, (beginning, end) in sorted(bounds.items())
        if partition not in others
        and (first := max(beginning, firsts.get(partition, 0))) < (until := min(ends[partition], end))
    }
    cluster_id = await transport.topics.cluster_id()
    return Plan(
        service=service,
        handler=handler,
        triggers=triggers,
        stretches=stretches,
        types=_types(registry),
        origins={name: origin_of(cluster_id, name, topic.incarnation) for name, topic in topics.items()},
        notes=tuple(_notes(triggers, topics, others, ends, bounds, firsts)),
        disorder=await _disorder(store, registry, handler, triggers),
    )


class Backfill:
    """Carries a plan out.

    No more than `room` events are parked for the handler at any time, so that the service reads on. `again` is what to
    type to go on. `advanced` is called when there is news, `waits` when it has to wait for the service, once.
    """

    def __init__(
        self,
        plan: Plan,
        store: Store,
        transport: Transport,
        *,
        clock: Clock,
        room: int,
        in_order: bool,
        again: str,
        advanced: Callable[[Done], None],
        waits: Callable[[int], None],
    ) -> None:
        self._plan = plan
        self._store = store
        self._transport = transport
        self._clock = clock
        self._room = max(room, 1)
        self._in_order = in_order
        self._again = again
        self._tell_advanced = advanced
        self._tell_waits = waits
        self._version = 0
        self._has_waited = False
        self.done = Done()

    async def run(self) -> None:
        """Read, and park what the handler has not had.

        Raises MicroflowError if it has to stop before the end: what was handed over stays so. Also raises StoreError
        and TransportError.
        """
        await self._check_registry()
        at_once = min(AT_ONCE, self._room)
        async with Replay.open(self._transport, self._plan.stretches) as replay:
            in_vain = 0
            while not replay.is_over:
                if records := await replay.read(wait=PAUSE, max_records=at_once):
                    in_vain = 0
                    await self._hand_over(records)
                else:
                    in_vain += 1
                    await self._look_for(replay, in_vain)

    async def _hand_over(self, records: Sequence[Record]) -> None:
        events = [event for record in records if (event := self._event(record)) is not None]
        # What is known already needs no room; who is right in the end is said by the transaction.
        known = await self._store.inbox.seen([event.claim for event in events])
        handed_over = 0
        if fresh := [event for event in events if event.claim not in known]:
            await self._wait_for_room(len(fresh))
            handed_over = await self._park(fresh)
        self.done.handed_over += handed_over
        self.done.known += len(events) - handed_over
        self.done.read += len(records)
        self._tell_advanced(self.done)

    def _event(self, record: Record) -> Parked | None:
        """A record as an event to be parked for the handler; None if it is not its, or if it reads that itself."""
        plan = self._plan
        bound = only_type(plan.types.get(record.topic, ()))
        try:
            envelope = open_envelope(record, type_of_topic=bound, origin=plan.origins[record.topic])
        except DecodeError:
            self.done.unreadable += 1
            return None
        if envelope is None:
            return None
        reads_from = plan.triggers.get(Trigger(envelope.type, record.topic), {})
        if record.offset >= reads_from.get(record.partition, 0):
            return None
        if redriven_for(record) not in (None, (plan.service, plan.handler)):
            return None
        claim = ClaimKey(plan.handler, envelope.digest)
        return Parked(claim, record, "handler", attempt=0, due=None, content=envelope.content)

    async def _look_for(self, replay: Replay, in_vain: int) -> None:
        """The log gives nothing: perhaps because its retention has taken it away meanwhile."""
        missing = replay.missing
        for partition, bound in (await self._transport.topics.bounds(missing.keys())).items():
            replay.pass_over(partition, bound.beginning)
        if in_vain >= PATIENCE:
            partition, (first, until) = next(iter(missing.items()))
            raise MicroflowError(
                f"The log gives nothing of {partition.topic}[{partition.partition}] from {first:,} to {until - 1:,}, "
                "and does not say why.",
                why=f"{self._so_far()} What is handed over is not lost, and not repeated.",
                fix=f"To go on:  {self._again}",
            )

    # ── one transaction ───────────────────────────────────────────────────────────────────────────────────────────

    async def _park(self, events: Sequence[Parked]) -> int:
        """Claim events for the handler and park those that it had not; return how many these are."""
        tries = 0
        while True:
            try:
                return await self._transact(events)
            except RegistryChanged:
                await self._check_registry()
            except StoreError as error:
                tries += 1
                if not error.transient or tries == TRIES:
                    raise
                await self._clock.sleep(PAUSE)

    async def _transact(self, events: Sequence[Parked]) -> int:
        now = self._clock.now()
        claims = [
            Claim(each.claim, each.content, each.record.source, each.record.offset, status="parked") for each in events
        ]
        async with self._store.transaction() as transaction:
            # Not for a handler that was retired or renamed this moment, nor behind offsets that are others by now.
            await transaction.fence({}, registry=self._version)
            granted = await transaction.claim(claims, now=now)
            parked = [_due(each, now) for each, is_ours in zip(events, granted, strict=True) if is_ours]
            await transaction.write(Changes(parked=parked))
        return len(parked)

    # ── the service beside it ─────────────────────────────────────────────────────────────────────────────────────

    async def _check_registry(self) -> Registry:
        """The registry as it is now. Raises MicroflowError if what was planned does not fit any more."""
        plan = self._plan
        registry = await self._store.handlers.registry(now=self._clock.now())
        if _registered(registry, plan.service, plan.handler).triggers != plan.triggers:
            raise MicroflowError(
                f"What {plan.handler} reads has changed meanwhile.", why=self._so_far(), fix=f"To go on:  {self._again}"
            )
        if self._in_order and _processes(registry, plan.handler):
            raise MicroflowError(
                f"A process has begun to run {plan.handler} meanwhile: events of a key may be handled out of order.",
                why=self._so_far(),
                fix=f"Stop it, or accept that:  {self._again} --out-of-order",
            )
        self._version = registry.version
        return registry

    async def _wait_for_room(self, wanted: int) -> None:
        room = self._room
        while True:
            waiting = (await self._store.parking.counts(at_most=self._room)).get(self._plan.handler, 0)
            registry = await self._check_registry()
            if waiting + wanted <= room:
                return
            if not _processes(registry, self._plan.handler):
                raise self._no_room(waiting)
            room = max(self._room // 2, wanted)  # so that it does not stop again with the next batch
            if not self._has_waited:
                self._has_waited = True
                self._tell_waits(waiting)
            await self._clock.sleep(PAUSE)

    def _no_room(self, waiting: int) -> MicroflowError:
        plan = self._plan
        more = " --out-of-order" if self._in_order else ""
        counted = f"At least {waiting:,}" if waiting >= self._room else f"{waiting:,}"
        return MicroflowError(
            f"{counted} events wait for {plan.handler}, and no process of {plan.service} works them off.",
            why=f"{self._so_far()} A backfill uses half of what may be parked for a handler, here {self._room:,} "
            "events (MICROFLOW_PARKED_PER_HANDLER).",
            fix=f"Start {plan.service}, and go on:  {self._again}{more}",
        )

    def _so_far(self) -> str:
        count = self.done.handed_over
        return "1 event was handed over." if count == 1 else f"{count:,} events were handed over."


def _registered(registry: Registry, service: str, handler: str) -> Registered:
    if handler in registry.handlers:
        return registry.handlers[handler]
    if handler in registry.renamed:
        new = registry.renamed[handler]
        raise TargetError(
            f"The handler {handler} of {service} is called {new} now.",
            fix=f"microflow handlers backfill {new} --service {service}",
        )
    near = nearest(handler, registry.handlers)
    known = ", ".join(sorted(registry.handlers))
    raise TargetError(
        f"{service} has no handler {handler}.",
        why=f"It has {known}. A new one is known once it has run."
        if known
        else "It has registered none: it never ran.",
        fix=f"Did you mean {near}?" if near else f"microflow handlers list --service {service}",
    )


def _ends(triggers: Mapping[Trigger, Mapping[int, int]]) -> dict[TopicPartition, int]:
    """The offset of each partition from which on a handler reads all its types there itself."""
    ends: dict[TopicPartition, int] = {}
    for trigger, offsets in triggers.items():
        for number, offset in offsets.items():
            partition = TopicPartition(trigger.topic, number)
            ends[partition] = max(offset, ends.get(partition, 0))
    return ends


def _types(registry: Registry) -> dict[str, frozenset[str]]:
    """The types that a service handles of each topic."""
    types: dict[str, frozenset[str]] = {}
    for registered in registry.handlers.values():
        for trigger in registered.triggers:
            types[trigger.topic] = types.get(trigger.topic, frozenset()) | {trigger.event_type}
    return types


async def _recreated(store: Store, topics: Mapping[str, Topic]) -> frozenset[TopicPartition]:
    """The partitions of topics that were deleted and created again since the service has read them."""
    incarnations = await store.partitions.incarnations()
    return frozenset(
        partition
        for partition, stored in incarnations.items()
        if partition.topic in topics and stored and topics[partition.topic].incarnation not in ("", stored)
    )


def _notes(
    triggers: Mapping[Trigger, Mapping[int, int]],
    topics: Mapping[str, Topic],
    others: frozenset[TopicPartition],
    ends: Mapping[TopicPartition, int],
    bounds: Mapping[TopicPartition, Bounds],
    firsts: Mapping[TopicPartition, int],
) -> list[str]:
    """What of a handler's topics cannot be read, or need not be."""
    notes = []
    for name in sorted({trigger.topic for trigger in triggers}):
        gone = sum(
            min(bound.beginning, ends[each])
            for each, bound in bounds.items()
            if each.topic == name and each not in others and firsts.get(each, 0) <= bound.beginning
        )
        if name not in topics:
            notes.append(f"the log has no topic {name}")
        elif any(each.topic == name for each in others):
            notes.append(
                f"{name} was deleted and created again; the service reads the new one from its earliest record when it "
                "starts"
            )
        elif gone:
            notes.append(f"the log has the first {gone:,} records of {name} no more: its retention is over")
    return notes


async def _disorder(
    store: Store, registry: Registry, handler: str, triggers: Mapping[Trigger, Mapping[int, int]]
) -> str:
    """Why a handler may have had newer events of a key by the time it gets the older ones; "" if that cannot be."""
    if _processes(registry, handler):
        return f"{handler} is at work, and handles newer events of a key before older ones"
    topics = {trigger.topic for trigger in triggers}
    watermarks = await store.partitions.watermarks()
    begins = {
        partition: min(triggers[each].get(partition.partition, 0) for each in triggers if each.topic == partition.topic)
        for partition in watermarks
        if partition.topic in topics
    }
    # A watermark outlives the claims, and claims may be ahead of it.
    is_passed = any(watermarks[partition] > offset for partition, offset in begins.items())
    if is_passed or await store.inbox.claimed_from(handler, begins):
        return f"{handler} may have handled newer events of a key already"
    return ""


def _processes(registry: Registry, handler: str) -> Sequence[str]:
    return [owner for owner, handlers in registry.processes.items() if handler in handlers]


def _due(event: Parked, now: datetime) -> Parked:
    return Parked(event.claim, event.record, event.order, attempt=0, due=now, content=event.content)
