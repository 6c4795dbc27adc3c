"""The consumer behind a subscription: started, told of, watched over, and replaced when it does not get on.

Rebalances are told by aiokafka's coordination task, everything else by the follower's own. Whoever calls the listener
holds `_changing`: callbacks never overlap, and none is cut short because a `fetch` was cancelled.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Collection, Mapping

from aiokafka import AIOKafkaConsumer
from aiokafka import errors as kafka
from aiokafka.structs import TopicPartition as Place

from microflow.errors import TransportError
from microflow.ports import RebalanceListener, Topic, TopicPartition
from microflow.transports.kafka import driver
from microflow.transports.kafka.client import Client
from microflow.transports.kafka.consumers import join, make_consumer
from microflow.transports.kafka.errors import permission, transport_error
from microflow.transports.kafka.groups import Generation, is_member
from microflow.transports.kafka.reading import Reading, named
from microflow.transports.kafka.topics import END, READ_COMMITTED, KafkaTopics
from microflow.transports.kafka.watch import Progress

logger = logging.getLogger("microflow.transports.kafka")

LOOK_EVERY = 1.0
PAUSE_AFTER_FAILURE = 0.5
STOP_WITHIN = 5.0
STALLED_AFTER = 10.0
LOOK_FOR_MEMBERSHIP_EVERY = 5.0
START_WITHIN = 10.0


class Following:
    """Keeps a consumer at work for one listener. `ring` is called when there may be something new for a reader."""

    def __init__(
        self,
        client: Client,
        topics: KafkaTopics,
        names: Collection[str],
        *,
        group: str | None,
        listener: RebalanceListener,
        ring: Callable[[], None],
    ) -> None:
        self._client = client
        self._topics = topics
        self._names = frozenset(names)
        self._group = group
        self._listener = listener
        self._ring = ring
        self._changing = asyncio.Lock()
        self._attention = asyncio.Event()
        self._consumer: AIOKafkaConsumer | None = None
        self._task: asyncio.Task[None] | None = None
        self._closed = False
        self._failure: Exception | None = None
        self._told = False
        self._unsound = False
        self._known: Mapping[str, Topic] = {}
        self._progress = Progress(patience=STALLED_AFTER)
        self._membership_looked_at = 0.0
        self._times_missing = 0
        self.reading: Reading | None = None
        """The partitions in hand, if there are any; it begins when the listener has been told."""
        self.generation: Generation | None = None
        """In whose name offsets are committed, while there is such a one."""

    def begin(self) -> None:
        """Start, once."""
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._run())

    def fail(self, error: Exception) -> None:
        """Have the next fetch raise this."""
        self._failure = error
        self._ring()

    def take_failure(self) -> Exception | None:
        """What the caller has to know. What failed is tried again while it decides what to do about it."""
        failure, self._failure = self._failure, None
        if failure is not None:
            self._attention.set()
        return failure

    def doubt(self) -> None:
        """The ground has moved under the partitions in hand: whoever has them is to begin anew."""
        self._unsound = True
        self._attention.set()

    async def close(self) -> None:
        """Leave at once, telling nobody."""
        self._closed = True
        self.generation = None
        if self._task is not None and self._task is not asyncio.current_task():
            self._task.cancel()
            await asyncio.wait([self._task])  # and whoever cancels us meanwhile is heard
            if not self._task.cancelled():
                self._task.exception()
        consumer, self._consumer = self._consumer, None
        if consumer is not None:
            await driver.stop_consumer(consumer, within=STOP_WITHIN)

    # ── the consumer ──────────────────────────────────────────────────────────────────────────────────────────────

    async def _run(self) -> None:
        while not self._closed:
            try:
                await self._start()
                await self._watch_over()
            except TransportError as error:
                self.fail(error)
            except Exception as error:
                logger.debug("a consumer failed", exc_info=True)
                self.fail(transport_error(error, doing=f"to read {', '.join(sorted(self._names))}"))
            await self._dismiss()
            await asyncio.sleep(PAUSE_AFTER_FAILURE)

    async def _start(self) -> None:
        consumer = make_consumer(self._client.settings, group=self._group)
        try:
            async with asyncio.timeout(START_WITHIN):
                await consumer.start()
        except (kafka.KafkaError, OSError, TimeoutError) as error:
            await driver.stop_consumer(consumer, within=STOP_WITHIN)
            raise await self._client.why(error) from error
        except BaseException:
            await driver.stop_consumer(consumer, within=STOP_WITHIN)
            raise
        self._consumer = consumer
        self._known = {}
        self._times_missing = 0
        self._progress.forget()
        if self._group is not None:
            join(consumer, self._names, _Ear(self, consumer))
        else:
            await self._read_everything(await self._topics.describe(self._names))

    async def _dismiss(self) -> None:
        """Give the partitions back and stop the consumer, so that another one can take its place."""
        async with self._changing:
            await self._take_away()
        consumer, self._consumer = self._consumer, None
        if consumer is not None:
            await driver.stop_consumer(consumer, within=STOP_WITHIN)

    async def _read_everything(self, topics: Mapping[str, Topic]) -> None:
        """Outside all groups: every partition of the topics that exist."""
        partitions = frozenset(
            TopicPartition(topic.name, each) for topic in topics.values() for each in range(topic.partitions)
        )
        self._known = topics
        async with self._changing:
            await self._take_away()
            assert self._consumer is not None
            self._consumer.assign([Place(*each) for each in partitions])
            await self._hand_out(partitions)

    # ── telling ───────────────────────────────────────────────────────────────────────────────────────────────────

    async def revoked(self, consumer: AIOKafkaConsumer) -> None:
        """A rebalance begins."""
        async with self._changing:
            if consumer is self._consumer and not self._closed:
                await self._take_away()

    async def assigned(self, consumer: AIOKafkaConsumer, partitions: frozenset[TopicPartition]) -> None:
        """A rebalance has ended."""
        async with self._changing:
            if consumer is self._consumer and not self._closed:
                self.generation = Generation(*driver.membership(consumer))
                await self._hand_out(partitions)

    async def _take_away(self) -> None:
        reading, told = self.reading, self._told
        if reading is None:
            return
        reading.end()
        self._ring()
        try:
            if told and not self._closed:
                await self._listener.revoked(reading.partitions)
        except Exception as error:
            self.fail(error)
        finally:
            self.reading, self.generation, self._told, self._unsound = None, None, False, False

    async def _hand_out(self, partitions: frozenset[TopicPartition]) -> None:
        assert self._consumer is not None
        self.reading = Reading(self._consumer, partitions)
        self._unsound = False
        await self._tell()

    async def _tell(self) -> None:
        reading = self.reading
        assert reading is not None
        try:
            await self._listener.assigned(reading.partitions)
        except Exception as error:
            self.fail(error)
            return
        self._told = True
        reading.begin()
        self._ring()

    # ── the watch ─────────────────────────────────────────────────────────────────────────────────────────────────

    async def _watch_over(self) -> None:
        """Return when the consumer must be replaced."""
        while True:
            # Not `wait_for`: until Python 3.12 it swallows a cancellation that meets what it waits for, and `close`
            # cancels right after a failure has been taken, which calls for attention.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_EVERY):
                    await self._attention.wait()
            self._attention.clear()
            assert self._consumer is not None
            if not driver.is_alive(self._consumer):
                logger.warning("reading %s has ended by itself, and is begun anew", ", ".join(sorted(self._names)))
                return
            await self._tell_again()
            try:
                driver.check_coordination(self._consumer)
                await self._look_at_topics()
                if await self._is_stalled() or await self._is_expelled():
                    return
            except TransportError as error:
                self._progress.forget()
                self.fail(error)
            except kafka.KafkaError as error:
                doing = f"to be a member of the group {self._group}"
                self.fail(transport_error(error, doing=doing, needs=permission("Read", group=self._group)))

    async def _tell_again(self) -> None:
        """Tell a listener that failed once more, or one whose partitions are not what they were."""
        async with self._changing:
            if self.reading is not None and self._unsound:
                partitions, generation = self.reading.partitions, self.generation
                await self._take_away()
                self.generation = generation
                await self._hand_out(partitions)
            elif self.reading is not None and not self._told:
                await self._tell()

    async def _look_at_topics(self) -> None:
        """Notice topics that appeared, and those that are not the ones they were."""
        before, found = self._known, await self._topics.describe(self._names)
        if self._group is None:
            if found != before:
                await self._read_everything(found)
            return
        self._known = {**before, **found}  # one that is missing now may come back as another
        others = {
            name for name, topic in found.items() if name in before and topic.incarnation != before[name].incarnation
        }
        if others and self.reading is not None and others & {each.topic for each in self.reading.partitions}:
            logger.debug("%s is not the topic it was", ", ".join(others))
            self.doubt()

    async def _is_stalled(self) -> bool:
        reading = self.reading
        if reading is None or not self._told or not reading.is_wanted(within=2 * LOOK_EVERY):
            self._progress.forget()
            return False
        active = reading.active
        ends = await self._topics.offsets(dict.fromkeys(active, END), isolation=READ_COMMITTED)
        if reading is not self.reading:
            return False
        stalled = self._progress.look(time.monotonic(), positions=reading.fetched_to(active), ends=ends)
        if stalled:
            logger.warning("nothing comes of %s, and there is something: reading is begun anew", named(stalled))
        return bool(stalled)

    async def _is_expelled(self) -> bool:
        """Whether the group knows nothing of a member that takes itself for one (aiokafka issue 1187)."""
        now = time.monotonic()
        if (
            self._group is None
            or self.generation is None
            or now - self._membership_looked_at < LOOK_FOR_MEMBERSHIP_EVERY
        ):
            return False
        assert self._consumer is not None
        if not driver.is_joined(self._consumer):
            return False
        self._membership_looked_at = now
        generation = self.generation
        found = await is_member(self._client, self._group, generation.member_id)
        if generation != self.generation or found is not False:
            self._times_missing = 0
            return False
        self._times_missing += 1
        if self._times_missing < 2:
            return False
        logger.warning("the group %s does not know us any more: we join anew", self._group)
        return True


class _Ear:
    """Hears what becomes of one consumer's partitions. An earlier consumer's last words are not heard."""

    def __init__(self, following: Following, consumer: AIOKafkaConsumer) -> None:
        self._following = following
        self._consumer = consumer

    async def taken_away(self) -> None:
        await self._following.revoked(self._consumer)

    async def handed_out(self, partitions: frozenset[TopicPartition]) -> None:
        await self._following.assigned(self._consumer, partitions)
