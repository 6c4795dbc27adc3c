"""Emitters: processes that emit numbered events for few keys, each publishing from memory and scanning, while their log
refuses, they are paused, their commits go unanswered and they are killed. Then the log is read."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from microflow.errors import StoreError, StoreUnavailable, TransportError
from microflow.outbox import Outbox
from microflow.ports import Changes, Clock, Migration, OrderingKey, OutboxRow, Record, Store, Transport
from microflow.relay import Relay
from tests.runtime.events import Accepted

COUNTERS = Migration("counters", "create table counters (name text primary key, number bigint not null)", "emitters.py")
COUNTED = "select name, number from counters"
COUNT = (
    "insert into counters (name, number) values ($1, 1) "
    "on conflict (name) do update set number = counters.number + 1 returning number"
)
TOPIC = "Accepted"


@dataclass(slots=True, kw_only=True)
class Weather:
    """What goes wrong, how often (probabilities), and for how long (seconds, at most)."""

    refusal: float = 0.05
    pause: float = 0.05
    longest_pause: float = 5.0
    rollback: float = 0.03
    lost_answer: float = 0.03
    kill: float = 0.02
    from_outside: float = 0.1


CALM = Weather(refusal=0, pause=0, rollback=0, lost_answer=0, kill=0)


class _Killed(BaseException):
    """A process ends here."""


class MoodyLog:
    """The log of one process: it refuses a partition now and then, and the process is stopped while it publishes."""

    def __init__(self, transport: Transport, emitter: Emitter) -> None:
        self._transport = transport
        self._emitter = emitter

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    async def publish(self, records: Sequence[Record]) -> Sequence[TransportError | None]:
        emitter = self._emitter
        await emitter.perhaps_pause()
        refused = {each for each in {record.source for record in records} if emitter.happens(emitter.weather.refusal)}
        errors = iter(await self._transport.publish([each for each in records if each.source not in refused]))
        answers = [TransportError("no leader") if each.source in refused else next(errors) for each in records]
        await emitter.perhaps_pause()
        if emitter.happens(emitter.weather.refusal / 4):  # stored, and the answer is lost
            return [TransportError("no answer") for _ in records]
        return answers


@dataclass(slots=True)
class Emitter:
    """One process: a relay at work, and transactions that emit."""

    name: str
    store: Store
    transport: Transport
    clock: Clock
    chance: random.Random
    weather: Weather
    sleep: Callable[[float], Awaitable[None]]
    relay: Relay = field(init=False)
    tasks: list[asyncio.Task[None]] = field(default_factory=list)
    emitted: int = 0

    def __post_init__(self) -> None:
        log: Any = MoodyLog(self.transport, self)
        self.relay = Relay(
            self.store.outbox,
            log,
            clock=self.clock,
            owner=self.name,
            chance=self.chance.random,
            batch=20,
            in_hand=100,
            from_memory=True,
        )

    async def start(self) -> None:
        await self.relay.learn([TOPIC], version=0)
        loop = asyncio.get_running_loop()
        self.tasks = [loop.create_task(self.relay.run()), loop.create_task(self.relay.watch())]

    async def kill(self) -> None:
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)

    async def emit(self, key: str, *, count: int) -> None:
        """One transaction that emits so many events of a key."""
        weather = self.weather
        try:
            with self.relay.outgoing.handing_over(version=0) as hand_over:
                async with self.store.transaction() as transaction:
                    await transaction.fence({}, keys={OrderingKey(TOPIC, key.encode())})
                    if self.happens(weather.from_outside):
                        number = await self._count(transaction, key)
                        await Outbox("web", clock=self.clock).append(
                            transaction.connection, Accepted(order=key, number=number)
                        )
                    numbers = [await self._count(transaction, key) for _ in range(count)]
                    # All at once: rows of a key have one publisher in a call, and it may change while we count.
                    rows = [self._row(key, number) for number in numbers]
                    hand_over.take(rows, await transaction.write(Changes(outbox=rows)))
                    if self.happens(weather.rollback):
                        raise StoreUnavailable("the disk is full")
                    await self.perhaps_pause()
                if self.happens(weather.lost_answer):
                    raise StoreUnavailable("the answer to the commit was lost")
                await self.perhaps_pause()
                if self.happens(weather.kill):
                    raise _Killed
            self.emitted += count
            if hand_over.leaves_some:
                self.relay.wake()
        except StoreError:  # what went wrong, or a lock that one who is paused has for too long
            pass

    async def _count(self, transaction: Any, key: str) -> int:
        return int(await transaction.connection.fetchval(COUNT, key))

    def _row(self, key: str, number: int) -> OutboxRow:
        headers = (("ce_id", f"{key}{number}".encode()),)
        publisher = self.relay.outgoing.publisher_of(TOPIC, key.encode(), headers)
        value = f'{{"order":"{key}","number":{number}}}'.encode()
        return OutboxRow(TOPIC, key.encode(), value, headers, self.clock.now(), publisher=publisher)

    def happens(self, probability: float) -> bool:
        return self.chance.random() < probability

    async def perhaps_pause(self) -> None:
        if self.happens(self.weather.pause):
            await self.sleep(self.chance.random() * self.weather.longest_pause)


async def storm(
    make: Callable[[str, random.Random, Weather], Awaitable[Emitter]],
    *,
    seed: int,
    settled: Callable[[], Awaitable[bool]],
    sleep: Callable[[float], Awaitable[None]],
    processes: int = 3,
    lanes: int = 2,
    keys: str = "abc",
    rounds: int = 30,
) -> None:
    """Emit in bad weather, then let it clear up until everything is `settled`."""
    chance = random.Random(seed)
    lives = itertools.count()
    living: list[Emitter] = []

    async def lane(emitter: Emitter) -> None:
        for _ in range(rounds):
            await emitter.emit(chance.choice(keys), count=chance.choice((1, 1, 1, 2, 5)))
            await sleep(chance.choice((0, 0, 0.001, 0.01, 0.2)))

    async def process() -> None:
        while True:
            emitter = await make(f"process-{next(lives)}", random.Random(chance.random()), Weather())
            await emitter.start()
            lanes_of_it = [asyncio.ensure_future(lane(emitter)) for _ in range(lanes)]
            try:
                await asyncio.gather(*lanes_of_it)
            except _Killed:
                for each in lanes_of_it:
                    each.cancel()
                await asyncio.gather(*lanes_of_it, return_exceptions=True)
                await emitter.kill()
            else:
                living.append(emitter)
                return

    await asyncio.gather(*(process() for _ in range(processes)))
    for emitter in living:
        emitter.weather = CALM
    while not await settled():
        await sleep(0.1)
    for emitter in living:
        await emitter.kill()


def first_occurrences(published: Sequence[Record]) -> dict[str, list[int]]:
    """The numbers of each key, in the order in which they were first seen in the log."""
    seen: dict[str, dict[int, None]] = defaultdict(dict)
    for record in sorted(published, key=lambda each: (each.partition, each.offset)):
        number = int((record.value or b"").rpartition(b":")[2].rstrip(b"}"))
        seen[(record.key or b"").decode()].setdefault(number)
    return {key: list(numbers) for key, numbers in seen.items()}
