"""A rolling deploy under load: real processes of one version give way to those of the next, one after the other.

Semantics 12. Each version has a handler that only it has: it is new on a topic that is read, and gone with the next
version. One that is kept is another function in every version, with the `name=` that it always had.
"""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition

from microflow.clocks import SystemClock
from microflow.envelopes import seal_root
from microflow.events import Event
from microflow.partitioner import Partitioner
from microflow.ports import TopicLayout
from microflow.transports.kafka import KafkaTransport, read_client_settings
from servers.finding import Found
from tests.cli.projects import Child, Project
from tests.crash.background import Background

pytestmark = pytest.mark.timeout(600)

PARTITIONS = 4
ACCOUNTS = 12
PAUSE = timedelta(milliseconds=10)
PATIENCE = 60.0
SLOW = "slow"

TABLES = """
create table effects (
    position bigint generated always as identity, handler text, version int, event text, account text, number int
);
"""
VERSION = '''
"""A till, version {version}."""

from datetime import timedelta

from microflow import Context, Event, Retry, Service, on

service = Service("{service}", tables="tables.sql")


class Placed(Event, key="account", topic="{placed}"):
    account: str
    number: int


class Counted(Event, key="account", topic="{counted}"):
    account: str
    number: int


def effect(handler: str, placed: Placed, context: Context) -> None:
    context.write(
        "insert into effects (handler, version, event, account, number) values ($1, $2, $3, $4, $5)",
        handler, {version}, context.event_id, placed.account, placed.number,
    )


@on("Placed", topic="{placed}")
async def count(placed: Placed, context: Context) -> Counted:
    effect("count", placed, context)
    return Counted(account=placed.account, number=placed.number)


@on("Placed", topic="{placed}", name="note")
async def note_{version}(placed: Placed, context: Context) -> None:
    effect("note", placed, context)


@on("Placed", topic="{placed}", retry=Retry(attempts=2, first_delay=timedelta(hours=1)))
async def only_{version}(placed: Placed, context: Context) -> None:
    if placed.account == "{slow}-{version}":
        raise TimeoutError("this will not be over before the version is")
    effect("only_{version}", placed, context)
'''


class Placed(Event, key="account"):
    account: str
    number: int


@dataclass(frozen=True, slots=True)
class Sent:
    """An event in the log: which one it is, and where it stands."""

    id: str
    account: str
    number: int
    partition: int
    offset: int


@dataclass(frozen=True, slots=True)
class Effect:
    """What one handler has done for one event."""

    handler: str
    version: int
    event: str
    account: str
    number: int


class Till:
    """One service in its versions, what is sent to it, and what it did."""

    def __init__(self, project: Project, kafka: str, database: str) -> None:
        suffix = uuid.uuid4().hex[:8]
        self.service = f"till_{suffix}"
        self.sent: list[Sent] = []
        self.since: dict[str, Mapping[int, int]] = {}
        self._placed, self._counted = f"Placed-{suffix}", f"Counted-{suffix}"
        self._project = project
        self._kafka = kafka
        self._database = database
        self._environment = {"MICROFLOW_KAFKA": kafka, "MICROFLOW_DATABASE": database}
        self._numbers: dict[str, int] = defaultdict(int)
        project.write("tables.sql", TABLES)

    def write(self, version: int) -> str:
        """Write a version down; return its file."""
        source = VERSION.format(
            version=version, service=self.service, placed=self._placed, counted=self._counted, slow=SLOW
        )
        return self._project.write(f"version_{version}.py", source).name

    def start(self, version: int, *, processes: int = 1) -> list[Child]:
        file = self.write(version)
        started = [self._project.start("run", file, environment=self._environment) for _ in range(processes)]
        for child in started:
            child.until_ready()
        return started

    def refused(self, version: int) -> str:
        """What a version is told that does not start."""
        ended = self._project.run("run", self.write(version), environment=self._environment)
        assert ended.returncode == 2, ended.stdout + ended.stderr
        return ended.stderr

    def command(self, *arguments: str) -> list[dict[str, Any]]:
        words = [*arguments, "--service", self.service, "--json"]
        ended = self._project.run(*words, environment=self._environment)
        assert ended.returncode == 0, ended.stdout + ended.stderr
        return [json.loads(line) for line in ended.stdout.splitlines()]

    def learn_beginning(self, version: int) -> None:
        """Keep from which offsets on the handler that only this version has is to see events, as it was registered."""
        [listed] = [each for each in self.command("handlers", "list") if each["handler"] == f"only_{version}"]
        [trigger] = listed["triggers"]
        self.since[f"only_{version}"] = {int(number): offset for number, offset in trigger["since"].items()}

    # ── what is sent ──────────────────────────────────────────────────────────────────────────────────────────────

    async def make_topics(self) -> None:
        transport = await KafkaTransport.open(read_client_settings(self._kafka, {}))
        try:
            names = [self._placed, self._counted, f"dlq-{self.service}"]
            await transport.administration.create(dict.fromkeys(names, TopicLayout(partitions=PARTITIONS)))
        finally:
            await transport.close()

    @contextmanager
    def stream(self, background: Background) -> Iterator[None]:
        """Events are sent all the time while the block runs."""
        ending = asyncio.Event()

        async def send() -> None:
            async with AIOKafkaProducer(bootstrap_servers=self._kafka, acks="all", enable_idempotence=True) as producer:
                turn = 0
                while not ending.is_set():
                    await self._send(producer, f"account-{turn % ACCOUNTS}")
                    turn += 1
                    await asyncio.sleep(PAUSE.total_seconds())

        async def begin() -> asyncio.Task[None]:
            return asyncio.create_task(send())

        async def end(sending: asyncio.Task[None]) -> None:
            ending.set()
            await sending

        sending = background.run(begin(), seconds=PATIENCE)
        try:
            yield
        finally:
            background.run(end(sending), seconds=PATIENCE)

    async def send(self, account: str) -> None:
        async with AIOKafkaProducer(bootstrap_servers=self._kafka, acks="all") as producer:
            await self._send(producer, account)

    async def _send(self, producer: AIOKafkaProducer, account: str) -> None:
        self._numbers[account] += 1
        event = Placed(account=account, number=self._numbers[account])
        sealed = seal_root(
            event, service="shop", topic=self._placed, now=SystemClock().now(), random_bits=uuid.uuid4().int.__rshift__
        )
        assert sealed.key is not None
        partition = Partitioner().partition(sealed.key, partitions=PARTITIONS)
        at = await producer.send_and_wait(
            self._placed, sealed.value, key=sealed.key, partition=partition, headers=list(sealed.headers)
        )
        self.sent.append(Sent(dict(sealed.headers)["ce_id"].decode(), account, event.number, partition, at.offset))

    # ── what was done ─────────────────────────────────────────────────────────────────────────────────────────────

    async def effects(self) -> list[Effect]:
        connection = await asyncpg.connect(self._database)
        try:
            rows = await connection.fetch(
                "select handler, version, event, account, number from effects order by position"
            )
        finally:
            await connection.close()
        return [Effect(*row) for row in rows]

    def dead(self) -> dict[str, set[str]]:
        """The events that were given up, by handler."""
        found: dict[str, set[str]] = defaultdict(set)
        for letter in self.command("dead-letters", "list", "--each"):
            found[letter["handler"]].add(letter["event"])
        return found

    async def copied(self) -> dict[str, list[str]]:
        """The events of which the log has a copy as a dead letter, by the handler that gave them up."""
        found: dict[str, list[str]] = defaultdict(list)
        places = [TopicPartition(f"dlq-{self.service}", number) for number in range(PARTITIONS)]
        async with AIOKafkaConsumer(bootstrap_servers=self._kafka, auto_offset_reset="earliest") as consumer:
            consumer.assign(places)
            ends = await consumer.end_offsets(places)
            while any([await consumer.position(each) < ends[each] for each in places]):
                for batch in (await consumer.getmany(timeout_ms=100)).values():
                    for record in batch:
                        headers = dict(record.headers)
                        found[headers["__dlq.errors.handler"].decode()].append(headers["ce_id"].decode())
        return found

    def until(self, condition: str, *arguments: Any, of: Sequence[Child]) -> None:
        """Wait until a query gives true."""
        end = time.monotonic() + PATIENCE
        while not asyncio.run(self.ask(condition, *arguments)):
            for child in of:
                assert child.process.poll() is None, child.stdout + child.stderr
            assert time.monotonic() < end, f"{condition}: {[child.stdout[-3000:] for child in of]}"
            time.sleep(0.05)

    async def ask(self, question: str, *arguments: Any) -> Any:
        connection = await asyncpg.connect(self._database)
        try:
            return await connection.fetchval(question, *arguments)
        finally:
            await connection.close()


@pytest.fixture
def background() -> Iterator[Background]:
    it = Background()
    yield it
    it.close()


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Project]:
    project = Project(tmp_path)
    yield project
    for child in project.children:
        child.kill()


@pytest.mark.parametrize("rounds", [1, pytest.param(6, marks=pytest.mark.torture)])
def test_versions_follow_each_other_and_every_handler_has_what_is_its_own(
    project: Project, kafka: Found, postgres_url: str, background: Background, rounds: int
) -> None:
    """Semantics 12: nothing is lost or done twice, the order of a key is kept, and what waits for a handler that is
    gone is told and becomes dead letters when somebody says so."""
    till = Till(project, kafka.address, postgres_url)
    background.run(till.make_topics(), seconds=PATIENCE)
    with till.stream(background):
        running = till.start(1, processes=2)
        till.since["only_1"] = {}
        for version in range(1, rounds + 1):
            running = _rolled(till, running, background, version=version)
        till.until("select count(*) > 200 from effects where handler = 'note'", of=running)
    everything = len(till.sent)
    for handler in ("count", "note"):
        till.until("select count(*) = $2 from effects where handler = $1", handler, everything, of=running)
    for table in ("parked", "outbox"):
        till.until(f"select count(*) = 0 from microflow.{table}", of=running)
    for child in running:
        assert child.stop() == 0

    effects = asyncio.run(till.effects())
    done: dict[str, dict[str, Effect]] = defaultdict(dict)
    for effect in effects:
        assert effect.event not in done[effect.handler], f"{effect} was done twice"
        done[effect.handler][effect.event] = effect
    for handler, its in done.items():
        _is_in_order(handler, list(its.values()))
    for handler in ("count", "note"):
        assert done[handler].keys() == {each.id for each in till.sent}
    dead = till.dead()
    for version in range(1, rounds + 2):
        handler = f"only_{version}"
        _is_all_that_came_in_its_time(till, handler, done[handler].keys(), dead[handler], at_work=version > rounds)
        assert {effect.version for effect in done[handler].values()} == {version}
    copied = asyncio.run(till.copied())
    assert {handler: set(its) for handler, its in copied.items()} == {name: its for name, its in dead.items() if its}
    assert {effect.version for effect in done["note"].values()} == set(range(1, rounds + 2))


def _rolled(till: Till, running: Sequence[Child], background: Background, *, version: int) -> list[Child]:
    """Replace the two processes of a version by those of the next one; return these."""
    first, second = running
    slow = f"{SLOW}-{version}"
    background.run(till.send(slow), seconds=PATIENCE)
    till.until("select count(*) > 0 from microflow.parked where attempt > 0", of=running)
    assert first.stop() == 0
    [newer] = till.start(version + 1)
    till.learn_beginning(version + 1)
    # Side by side: each has events for a handler that only the other one has.
    for handler in (f"only_{version}", f"only_{version + 1}"):
        till.until(
            "select count(*) > 0 from effects where handler = $1 and position > $2",
            handler,
            asyncio.run(till.ask("select max(position) from effects")),
            of=[second, newer],
        )
    background.run(till.send(slow), seconds=PATIENCE)
    assert second.stop() == 0

    told = till.refused(version + 1)

    assert f"for the handler only_{version} of {till.service}, which no process has any more." in told
    assert f"microflow handlers retire only_{version} --service {till.service}" in told
    newer.until(lambda: any(f"for the handler only_{version} of" in line.get("message", "") for line in newer.lines()))
    [retired] = till.command("handlers", "retire", f"only_{version}", "--yes")
    assert retired["handler"] == f"only_{version}"
    assert f"only_{version}" not in {each["handler"] for each in till.command("handlers", "list")}
    return [newer, *till.start(version + 1)]


def _is_in_order(handler: str, effects: Sequence[Effect]) -> None:
    """Every account's events were handled in the order in which they were sent."""
    last: dict[str, int] = defaultdict(int)
    for effect in effects:
        assert effect.number > last[effect.account], f"{handler}: {effect} after {last[effect.account]}"
        last[effect.account] = effect.number


def _is_all_that_came_in_its_time(
    till: Till, handler: str, done: Collection[str], dead: set[str], *, at_work: bool
) -> None:
    """A handler has seen every event from where it was registered on, until it was retired: what was not done by then
    is a dead letter, and nothing is both."""
    assert dead.isdisjoint(done)
    assert bool(dead) != at_work
    since = till.since[handler]
    seen = dead.union(done)
    accounts: dict[str, list[Sent]] = defaultdict(list)
    for each in till.sent:
        if each.offset >= since.get(each.partition, 0):
            accounts[each.account].append(each)
    for account, sent in accounts.items():
        of_account = [each.id for each in sent if each.id in seen]
        assert of_account == [each.id for each in sent][: len(of_account)], f"{handler} misses some of {account}"
        if at_work:
            assert len(of_account) == len(sent)
    assert seen <= {each.id for its in accounts.values() for each in its}
