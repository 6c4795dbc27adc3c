"""The intake: records become deliveries. It opens them, spreads them over the lanes by key, and stops at the window.

It is also the service's ear for rebalances: partitions begin with a new epoch and at the database's watermark.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import zlib
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from datetime import datetime, timedelta
from typing import TypeVar

from microflow.beginnings import judge, tell, tell_of_offsets
from microflow.caution import Caution
from microflow.dead_letter_copies import redriven_for
from microflow.deliveries import Delivery, Execution, Postponed
from microflow.envelopes import EPOCH, Envelope, only_type, open_envelope, origin_of, position_digest
from microflow.errors import (
    ContractError,
    DecodeError,
    Fenced,
    IdentityError,
    LogGone,
    LogRefused,
    StoreError,
    TopicRefused,
    TransportError,
)
from microflow.handlers import Handler, Trigger
from microflow.ids import content_of
from microflow.lanes import Lane
from microflow.ports import (
    Beginning,
    Changes,
    Ownership,
    Parked,
    Record,
    Subscription,
    Topic,
    TopicPartition,
    Transport,
)
from microflow.pressure import Pressure
from microflow.runtime import Runtime
from microflow.signals import Signal
from microflow.trouble import Trouble

logger = logging.getLogger("microflow.intake")

T = TypeVar("T")

PAUSE_AFTER_ERROR = timedelta(milliseconds=250)
NO_HANDLERS: Mapping[str, list[Handler]] = {}


class Intake:
    """Reads the topics of a service into its lanes. `skipped` is called for records that it does not handle.

    `joined` is set when partitions are assigned, `changed` whenever they have changed; while `rebalancing` is true it
    is not known yet which they are.
    """

    def __init__(
        self,
        runtime: Runtime,
        transport: Transport,
        lanes: Sequence[Lane],
        *,
        owner: str,
        caution: Caution,
        pressure: Pressure,
        skipped: Callable[[], None],
    ) -> None:
        self._runtime = runtime
        self._caution = caution
        self._pressure = pressure
        self._transport = transport
        self._lanes = lanes
        self._owner = owner
        self._tell_skipped = skipped
        self._handlers = _by_trigger(runtime.definition.handlers)
        self._by_name = {handler.name: handler for handler in runtime.definition.handlers}
        self._subscription: Subscription | None = None
        self._topics: Mapping[str, Topic] = {}
        self._origins: dict[str, str] = {}
        self._cluster_id = ""
        self._database_id = ""
        self._paused: set[TopicPartition] = set()
        self._sought: set[TopicPartition] = set()
        self._draining = False
        self._stopping = False
        self._refusal: Exception | None = None
        self._changing = asyncio.Lock()
        self._trouble = Trouble(logger)
        self.rebalancing = True
        self._has_joined = False
        self.joined = Signal(runtime.clock)
        self.skipped = 0
        self.changed = Signal(runtime.clock)

    async def run(self, *, cluster_id: str, database_id: str) -> None:
        """Be a member of the service's group until `stop`.

        Raises IdentityError if group and database do not match, LogGone and StoreGone if one of them was deleted, and
        LogRefused or TopicRefused if a permission is missing from the start.
        """
        self._cluster_id, self._database_id = cluster_id, database_id
        self._origins.clear()
        topics = self._runtime.definition.topics.keys()
        async with self._transport.subscribe(
            topics, group=self._runtime.definition.name, listener=self
        ) as subscription:
            self._subscription = subscription
            while not self._stopping:
                await self._fetch(subscription)
                if self._refusal is not None:
                    raise self._refusal
            await self._tell_offsets(subscription)

    def relieve(self) -> None:
        """Something was committed: read on where reading had stopped at a bound."""
        if self._paused:
            self.adjust()

    def adjust(self) -> None:
        """What has to pause has changed."""
        if self._subscription is not None and not self._stopping:
            self._throttle(self._subscription)

    def read_again(self, watermarks: Mapping[TopicPartition, int]) -> None:
        """Go back to these watermarks: others want to see what was read behind them. What is under way goes on, and
        is met again by its own records."""
        partitions = watermarks.keys() & set(self._runtime.assignment.partitions)
        for lane in self._lanes:
            lane.detach(partitions)
        self._caution.read_again(partitions)
        for partition in partitions:
            self._runtime.watermarks.begin(partition, watermarks[partition])
            self._sought.add(partition)
            self._seek(partition)
        self.relieve()

    def drain(self) -> None:
        """Take nothing in any more, but stay a member until `stop`, so that what runs can still be committed."""
        self._draining = True

    async def stop(self) -> None:
        """Leave the group."""
        self._stopping = True
        if self._subscription is not None:
            await self._tell_offsets(self._subscription)
            await self._release(tuple(self._runtime.assignment.partitions), self._caution.remaining())
            await self._subscription.close()

    async def tell_offsets(self) -> None:
        """Tell the group how far the service is, for displays of lag; nothing depends on it."""
        if self._subscription is not None and not self._stopping:
            await self._tell_offsets(self._subscription)

    # ── records ───────────────────────────────────────────────────────────────────────────────────────────────────

    async def _fetch(self, subscription: Subscription) -> None:
        limits = self._runtime.limits
        try:
            # Before the records are there: what was read before a partition begins anew must not be taken in after it.
            await self._take_back(subscription)
            self._throttle(subscription)
            self._sought.clear()
            room = max(limits.in_flight - self._in_flight(), 1)
            records = await subscription.fetch(max_records=min(limits.fetch, room), wait=limits.fetch_wait)
        except LogGone:
            raise
        except TransportError as error:
            if isinstance(error, LogRefused | TopicRefused) and not self._has_joined:
                raise  # nobody would see what is missing if the start waited for it
            if not self._stopping:
                does = "refuses us" if isinstance(error, LogRefused | TopicRefused) else "does not answer"
                self._trouble.met(f"the log {does}; trying again: %s", error.line)
                await self._runtime.clock.sleep(PAUSE_AFTER_ERROR)
            return
        self._trouble.is_over("the log is read again")
        if not self._draining:
            for record in records:
                if not self._sought or record.source not in self._sought:  # or: read before we went back
                    self._receive(record)
        for partition in self._sought:
            self._seek(partition)

    def _seek(self, partition: TopicPartition) -> None:
        position = self._runtime.watermarks.positions().get(partition)
        if position is not None and self._subscription is not None:
            # Taken away this very moment: whoever gets it begins at the watermark.
            with contextlib.suppress(TransportError):
                self._subscription.seek(partition, position)

    def _throttle(self, subscription: Subscription) -> None:
        """Pause what is too far ahead of its watermark or under pressure, or everything while too much is in hand."""
        runtime, pressed, in_flight = self._runtime, self._pressure.topics, self._in_flight()
        full = self._draining or in_flight >= runtime.limits.in_flight
        wanted = {
            partition
            for partition in runtime.assignment.partitions
            if full
            or runtime.watermarks.distance(partition) >= runtime.limits.window
            or self._caution.pauses(partition)
            or partition.topic in pressed
        }
        # Half-way down before reading goes on, so that it does not start and stop with every record.
        held = {
            partition
            for partition in self._paused & set(runtime.assignment.partitions)
            if in_flight > runtime.limits.in_flight // 2
            or runtime.watermarks.distance(partition) > runtime.limits.window // 2
        }
        wanted |= held
        if new := wanted - self._paused:
            subscription.pause(new)
        if over := (self._paused & set(runtime.assignment.partitions)) - wanted:
            subscription.resume(over)
        self._paused = wanted

    def _in_flight(self) -> int:
        """How much is in hand; what waits for a circuit would keep the others from being read."""
        unfinished, pressed = self._runtime.watermarks.unfinished, self._pressure.topics
        return unfinished - self._runtime.watermarks.unfinished_of(pressed) if pressed else unfinished

    def _receive(self, record: Record) -> None:
        runtime, source = self._runtime, record.source
        if not runtime.assignment.owns(source) or not runtime.watermarks.read(source, record.offset):
            return
        if not self._caution.holds(record):
            self.take_in(record)

    def take_in(self, record: Record) -> list[Execution]:
        """Hand the executions of a record to their lane; it is finished if there are none."""
        executions = self.open(record)
        if executions:
            self.lane_of(record).submit(executions)
        else:
            self.skipped += 1
            self._runtime.watermarks.finish(record.source, record.offset)
            self._tell_skipped()
        return executions

    def lane_of(self, record: Record) -> Lane:
        """The lane that a record's key belongs to, whatever its topic."""
        # Python's own hash differs from process to process, and with it the order in which keys meet.
        spread = record.offset if record.key is None else zlib.crc32(record.key)
        return self._lanes[spread % len(self._lanes)]

    def open(self, record: Record) -> list[Execution]:
        """The executions of a record: one for each handler of its type, none if the service does not handle it.

        Those of handlers that only another version of the service has are to be parked.
        """
        origin = self._origin(record.topic)
        types = self._handlers.get(record.topic, NO_HANDLERS)
        strangers = self._runtime.registration.strangers(record.topic)
        try:
            envelope = open_envelope(record, type_of_topic=only_type(types or strangers), origin=origin)
        except DecodeError as error:
            return [self._unreadable(record, origin, error)]
        if envelope is None:
            return []
        target = redriven_for(record)
        if target is not None and target[0] != self._runtime.definition.name:
            return []
        delivery = Delivery(record, envelope, sent_again=target is not None)
        executions = [Execution(delivery, handler) for handler in types.get(envelope.type, ())]
        if names := strangers.get(envelope.type, ()):
            now = self._runtime.clock.now()
            executions += [Execution(delivery, None, name, Postponed(now)) for name in names]
        if target is not None:
            executions = [each for each in executions if each.claim_key.handler == target[1]]
        delivery.unsettled = len(executions)
        return executions

    def reopen(self, row: Parked) -> Execution | None:
        """The execution of a parked event; None if only another version of the service handles such events.

        It is the handler's whatever topic it reads today.
        """
        record, handler = row.record, self._by_name.get(row.claim.handler)
        if handler is None:
            return next((each for each in self.open(record) if each.claim_key == row.claim and not each.stranger), None)
        origin = self._origin(record.topic)
        types = {trigger.event_type for trigger in handler.triggers}
        try:
            bound = only_type(self._handlers.get(record.topic, ())) or only_type(types)
            envelope = open_envelope(record, type_of_topic=bound, origin=origin)
        except DecodeError:
            envelope = None
        if envelope is not None and envelope.type in types:
            return Execution(Delivery(record, _as_parked(envelope, row)), handler)
        envelope = envelope or _envelope_of_unreadable(record, origin)
        if self._runtime.registration.is_stranger(handler.name, Trigger(envelope.type, record.topic)):
            return None
        execution = Execution(Delivery(record, _as_parked(envelope, row)), handler)
        error = ContractError(f"{handler.name} does not handle {envelope.type} any more.", where=handler.where)
        execution.given = execution.outcome = self._runtime.judge(execution, error)
        return execution

    def type_here(self, row: Parked) -> str | None:
        """The type of a parked event, if this process can run it."""
        execution = self.reopen(row)
        return None if execution is None or execution.given is not None else execution.delivery.envelope.type

    def _unreadable(self, record: Record, origin: str, error: DecodeError) -> Execution:
        envelope = _envelope_of_unreadable(record, origin)
        execution = Execution(Delivery(record, envelope, unsettled=1), None)
        execution.given = execution.outcome = self._runtime.judge(execution, error)
        return execution

    def _origin(self, topic: str) -> str:
        origin = self._origins.get(topic)
        if origin is None:
            incarnation = self._incarnation(TopicPartition(topic, 0))
            origin = self._origins[topic] = origin_of(self._cluster_id, topic, incarnation)
        return origin

    # ── partitions ────────────────────────────────────────────────────────────────────────────────────────────────

    async def revoked(self, partitions: frozenset[TopicPartition]) -> None:
        """Wait for open transactions only; what runs becomes an orphan."""
        self._runtime.reach("before revoke")
        self.rebalancing = True
        async with self._changing:
            if self._subscription is not None:
                await self._tell_offsets(self._subscription)
            await self._give_up(partitions, release=True)
        self._runtime.reach("after revoke")

    async def assigned(self, partitions: frozenset[TopicPartition]) -> None:
        """Begin a new epoch for each, at the watermark that the database has."""
        self._runtime.reach("before assign")
        assert self._subscription is not None
        try:
            async with self._changing:
                committed = await self._check_group(self._subscription, partitions)
                await self._take(self._subscription, partitions, committed=committed)
        except IdentityError as refusal:
            self._refusal = refusal
            return
        self.rebalancing = False
        self._runtime.reach("after assign")
        self._has_joined = True
        self.joined.set()
        self.changed.set()

    async def _give_up(self, partitions: Collection[TopicPartition], *, release: bool = False) -> None:
        careful_until = self._caution.remaining()
        self._caution.forget(partitions)
        for lane in self._lanes:
            async with lane.between_transactions():
                lane.drop(partitions)
        if release:
            await self._release(partitions, careful_until)
        self._runtime.assignment.disown(partitions)
        self._runtime.watermarks.forget(partitions)
        self._paused.difference_update(partitions)
        self.changed.set()

    async def _release(
        self, partitions: Collection[TopicPartition], careful_until: Mapping[TopicPartition, int]
    ) -> None:
        """Say that we leave in good order; if that cannot be said, whoever comes next is careful in vain."""
        epochs = {partition: self._runtime.assignment.epoch(partition) for partition in partitions}
        owned = {partition: epoch for partition, epoch in epochs.items() if epoch is not None}
        try:
            await self._runtime.store.partitions.release(owned, careful_until=careful_until)
        except StoreError as error:
            logger.debug("partitions were not released: %s", error)

    async def _take(
        self,
        subscription: Subscription,
        partitions: Collection[TopicPartition],
        *,
        committed: Collection[TopicPartition] | None = None,
    ) -> None:
        runtime = self._runtime
        self._topics = await self._insist_on_log(lambda: self._transport.topics.describe(runtime.definition.topics))
        self._origins.clear()
        owned = await runtime.outages.insist(lambda: runtime.store.partitions.take(partitions, owner=self._owner))
        starts, beginnings, others = await self._judge(owned)
        if committed is not None:
            tell_of_offsets(
                runtime.definition.name, forgotten=[each for each in starts if starts[each] and each not in committed]
            )
        if new := [partition for partition, ownership in owned.items() if ownership.watermark is None]:
            first = await self._first_offsets(new)
            starts |= first
            # `latest` must be the latest of the first start: on a restart before the first event it would skip some.
            beginnings |= {each: Beginning(offset, self._incarnation(each)) for each, offset in first.items()}
        if beginnings:
            epochs = {partition: owned[partition].epoch for partition in beginnings}
            await runtime.outages.insist(lambda: self._store_beginnings(epochs, beginnings))
        left_badly = await self._left_badly(owned, starts)
        crashes = await runtime.outages.insist(lambda: runtime.store.suspects.known(partitions))
        for partition, offset in starts.items():
            runtime.watermarks.begin(partition, offset)
            subscription.seek(partition, offset)
        runtime.assignment.own({partition: ownership.epoch for partition, ownership in owned.items()})
        if left_badly or crashes:
            self._caution.begin(left_badly, crashes)
        everything = runtime.watermarks.lows()
        for lane in self._lanes:
            lane.keep(everything, others=others)

    async def _left_badly(
        self, owned: Mapping[TopicPartition, Ownership], starts: Mapping[TopicPartition, int]
    ) -> Mapping[TopicPartition, int]:
        """The partitions that were not left in good order, and up to where their owner can have had them in hand."""
        badly = {partition: ownership for partition, ownership in owned.items() if not ownership.clean}
        if not badly:
            return {}
        limits = self._runtime.limits
        bounds = await self._insist_on_log(lambda: self._transport.topics.bounds(badly))
        return {
            partition: min(bounds[partition].end, starts[partition] + limits.window + limits.fetch)
            if ownership.careful_until is None
            else ownership.careful_until
            for partition, ownership in badly.items()
        }

    async def _take_back(self, subscription: Subscription) -> None:
        """A fence refused an epoch, and yet the log still counts us as the owner: begin a newer one."""
        if not self._runtime.assignment.lost or self._stopping:
            return
        async with self._changing:
            lost = frozenset(self._runtime.assignment.lost)
            lows = self._runtime.watermarks.lows()
            try:
                await subscription.commit({each: lows[each] for each in lost}, metadata=self._database_id)
            except TransportError:
                return  # not the log's owner either: a rebalance will tell
            await self._give_up(lost)
            await self._take(subscription, lost)
            subscription.resume(lost)  # there was no rebalance that would have forgotten that they were paused
        self.changed.set()

    async def _judge(
        self, owned: Mapping[TopicPartition, Ownership]
    ) -> tuple[dict[TopicPartition, int], dict[TopicPartition, Beginning], Collection[TopicPartition]]:
        """Where partitions that were read before are read from now, what of them must be stored, and which of them are
        others than they were."""
        before = {partition: ownership for partition, ownership in owned.items() if ownership.watermark is not None}
        if not before:
            return {}, {}, ()
        bounds = await self._insist_on_log(lambda: self._transport.topics.bounds(before))
        verdicts = {
            partition: judge(partition, ownership, self._topics.get(partition.topic), bounds.get(partition))
            for partition, ownership in before.items()
        }
        tell(self._runtime.definition.name, verdicts)
        beginnings = {each: verdict.beginning for each, verdict in verdicts.items() if verdict.beginning is not None}
        others = {each for each, verdict in verdicts.items() if verdict.another}
        return {partition: verdict.offset for partition, verdict in verdicts.items()}, beginnings, others

    def _incarnation(self, partition: TopicPartition) -> str:
        return self._topics[partition.topic].incarnation if partition.topic in self._topics else ""

    async def _store_beginnings(
        self, epochs: Mapping[TopicPartition, int], beginnings: Mapping[TopicPartition, Beginning]
    ) -> None:
        try:
            async with self._runtime.store.transaction() as transaction:
                await transaction.fence(epochs)
                await transaction.write(Changes(beginnings=dict(beginnings)))
        except Fenced:
            pass  # somebody newer has begun already, and has stored them

    async def _first_offsets(self, partitions: Collection[TopicPartition]) -> dict[TopicPartition, int]:
        """Where partitions that this service has never read are read from."""
        start = self._runtime.definition.start
        topics = self._transport.topics
        bounds = await self._insist_on_log(lambda: topics.bounds(partitions))
        if isinstance(start, datetime):
            return dict(await self._insist_on_log(lambda: topics.offsets_at(partitions, start)))
        waiting = sum(bound.end - bound.beginning for bound in bounds.values())
        name = self._runtime.definition.name
        if start == "latest":
            if waiting:
                logger.info("%s starts at the latest record and passes over %d", name, waiting)
            return {partition: bound.end for partition, bound in bounds.items()}
        if waiting:
            logger.info("%s has not read before: it starts at the earliest of %d records", name, waiting)
        return {partition: bound.beginning for partition, bound in bounds.items()}

    async def _check_group(
        self, subscription: Subscription, partitions: Collection[TopicPartition]
    ) -> Collection[TopicPartition]:
        """Refuse the database of another group; return the partitions of which the group has an offset."""
        committed = await self._insist_on_log(lambda: subscription.committed(partitions))
        for other in {each.metadata for each in committed.values()} - {self._database_id, ""}:
            raise IdentityError(
                f"The group {self._runtime.definition.name} has been served from the database {other}, and this one is "
                f"{self._database_id}.",
                why="What that database has handled would be handled again, or what it has not would be skipped.",
                fix="Start with the database the service had, or give the service another name.",
            )
        return committed.keys()

    async def _tell_offsets(self, subscription: Subscription) -> None:
        try:
            await subscription.commit(self._runtime.watermarks.lows(), metadata=self._database_id)
        except TransportError as error:
            logger.debug("offsets for displays of lag were not committed: %s", error)

    async def _insist_on_log(self, ask: Callable[[], Awaitable[T]]) -> T:
        trouble = Trouble(logger)
        while True:
            try:
                answer = await ask()
            except (LogGone, LogRefused, TopicRefused):
                raise
            except TransportError as error:
                trouble.met("the log does not answer; trying again: %s", error.line)
                await self._runtime.clock.sleep(PAUSE_AFTER_ERROR)
            else:
                trouble.is_over("the log answers again")
                return answer


def _as_parked(envelope: Envelope, row: Parked) -> Envelope:
    # A record without an id has one from where it was read, and that place may be called differently by now.
    return envelope._replace(digest=row.claim.digest)


def _envelope_of_unreadable(record: Record, origin: str) -> Envelope:
    identifier = f"{record.partition}@{record.offset}"
    return Envelope(
        id=identifier,
        source=origin,
        type=record.topic,
        time=record.timestamp or EPOCH,
        correlation_id=identifier,
        causation_id=None,
        digest=position_digest(record, origin),
        content=content_of(record.value),
    )


def _by_trigger(handlers: Sequence[Handler]) -> dict[str, dict[str, list[Handler]]]:
    """Topic → type → its handlers, in the order in which they are written."""
    triggers: dict[str, dict[str, list[Handler]]] = {}
    for handler in handlers:
        for trigger in handler.triggers:
            triggers.setdefault(trigger.topic, {}).setdefault(trigger.event_type, []).append(handler)
    return triggers
