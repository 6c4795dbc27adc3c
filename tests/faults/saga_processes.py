"""The processes of the order saga, as `microflow run` runs them: killed, stopped, and started again."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any, Literal, TypeAlias

from servers.kafka import Kafka
from servers.postgres import Postgres
from tests.cli.projects import COMMAND
from tests.crash import patience
from tests.crash.sparing import MOST_DEATHS
from tests.faults.saga_ground import SERVICES, SESSION, TARGETS, SagaGround

SOON = 120.0
"""Seconds within which a saga must start, and come to rest, on a machine that is busy with other things."""
POLL = 0.02
LAST_LINES = 40

Fault: TypeAlias = Literal["killed", "both killed", "stopped", "stopped for a moment"]
FAULTS: Sequence[Fault] = ("killed", "killed", "both killed", "stopped", "stopped for a moment")


class Member:
    """One process of a service, in all its lives."""

    def __init__(self, service: str, slot: int, ground: SagaGround) -> None:
        self.service = service
        self.name = f"{service}-{slot}"
        self.lives = 0
        self.due: float | None = None
        """When it is to be started again, or to go on."""
        self._ground = ground
        self._process: subprocess.Popen[bytes] | None = None
        self._ready_in: int | None = None

    @property
    def running(self) -> bool:
        """Whether there is a process, be it stopped."""
        return self._process is not None and self._process.poll() is None

    @property
    def at_work(self) -> bool:
        """Whether it has said that it is ready, and nobody has stopped or killed it since."""
        return self.running and self.due is None and self._has_said_ready()

    def start(self) -> None:
        """Begin a life; what it says goes to files of its own."""
        self.lives += 1
        self.due = None
        with self._file("out").open("wb") as out, self._file("err").open("wb") as err:
            self._process = subprocess.Popen(
                [*COMMAND, "run", str(TARGETS[self.service]), "--json", "--until-end-of-input"],
                cwd=self._ground.folder,
                env=self._ground.environment,
                stdin=subprocess.PIPE,  # ends when this process does, however it ends
                stdout=out,
                stderr=err,
            )

    def send(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def kill(self) -> None:
        """End it now, and wait until it is gone."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            assert self._process.stdin is not None
            self._process.stdin.close()

    def _has_said_ready(self) -> bool:
        if self._ready_in != self.lives and any(line.get("message") == "ready" for line in self.lines()):
            self._ready_in = self.lives
        return self._ready_in == self.lives

    def lines(self) -> Iterator[dict[str, object]]:
        """What it has said in this life."""
        with self._file("out").open(encoding="utf-8") as out:
            for line in out:
                with contextlib.suppress(ValueError):  # the last one may be half written
                    yield json.loads(line)

    def last_words(self) -> str:
        """The ends of what it has printed in this life."""
        said = [self._file(kind).read_text(encoding="utf-8", errors="replace").splitlines() for kind in ("out", "err")]
        return "\n".join(
            [f"── {self.name}, life {self.lives}", *(line[:400] for of in said for line in of[-LAST_LINES:])]
        )

    def _file(self, kind: str) -> Path:
        return self._ground.folder / f"{self.name}.{self.lives}.{kind}"


class SagaProcesses:
    """Five services, `processes` of each. Use it as a context: leaving it kills everything."""

    def __init__(self, ground: SagaGround, *, processes: int = 2) -> None:
        self.ground = ground
        self.members = [Member(service, slot, ground) for slot in range(processes) for service in SERVICES]
        self.faults: Counter[str] = Counter()
        self._deck: list[Fault] = []

    def __enter__(self) -> SagaProcesses:
        return self

    def __exit__(self, *_: object) -> None:
        for member in self.members:
            member.kill()

    def start(self) -> None:
        """Start all processes and return when they are ready. The first of each service make the tables."""
        for member in self.members:
            member.start()
        self.wait_until_at_work(self.members)

    def of(self, service: str) -> list[Member]:
        """The processes of one service."""
        return [member for member in self.members if member.service == service]

    def keep(self) -> None:
        """Start what was killed and let go on what was stopped, where it is time for it."""
        for member in self.members:
            if member.due is None and not member.running:
                raise AssertionError(f"{member.name} has ended by itself.\n{member.last_words()}")
            if member.due is not None and time.monotonic() >= member.due:
                if member.running:
                    member.due = None
                    member.send(signal.SIGCONT)
                else:
                    member.start()

    def disturb(self, chance: Random) -> None:
        """Do something to one service that is at work, at random, unless semantics 6 would give an event up for it."""
        if not (there := [member for member in self.members if member.at_work]):
            return
        self._deck = self._deck or chance.sample(FAULTS, len(FAULTS))  # dealt in turn, so that none is left out
        member, fault = chance.choice(there), self._deck.pop()
        disturbed = [member]
        if fault == "both killed":
            disturbed = [each for each in there if each.service == member.service]
        # Not for longer than a session lasts, or for so long that others take over.
        pause = {
            "stopped": SESSION * chance.uniform(1.5, 2.5),
            "stopped for a moment": SESSION * chance.uniform(0.1, 0.9),
        }
        for each in disturbed:
            each.send(signal.SIGSTOP)
        time.sleep(POLL)  # what they had sent is there
        if self.ground.most_crashes(member.service) >= MOST_DEATHS:
            for each in disturbed:
                each.send(signal.SIGCONT)
            self.faults["spared"] += 1
            return
        for each in disturbed:
            if fault in pause:
                each.due = time.monotonic() + pause[fault]
            else:
                each.kill()
                each.due = time.monotonic() + chance.uniform(0, 2)
        self.faults[fault] += 1

    def kill(self, service: str) -> None:
        """Kill all processes of a service, when they are at work and semantics 6 allows it, and start them again."""
        self.wait_until_at_work(self.of(service))
        self.wait_until(lambda: self.ground.most_crashes(service) < MOST_DEATHS, f"{service} is through with care")
        for member in self.of(service):
            member.kill()
        for member in self.of(service):
            member.start()

    def wait_until_at_work(self, members: Sequence[Member]) -> None:
        """Wait until these processes are ready."""
        names = ", ".join(member.name for member in members)
        self.wait_until(lambda: all(member.at_work for member in members), f"{names} are ready")

    def come_to_rest(self, *, at_most: float = SOON) -> float:
        """Wait until nothing is left to be done; nobody helps, and everything that was stopped goes on. `at_most` so
        many seconds may go by in which nothing moves."""
        left: Mapping[str, Any] = {}

        def is_at_rest() -> bool:
            nonlocal left
            left = self.ground.work_left()
            return not left

        return self.wait_until(is_at_rest, "all is at rest", at_most=at_most, moved=lambda: left)

    def wait_until(
        self,
        condition: Callable[[], object],
        what: str,
        *,
        at_most: float = SOON,
        moved: Callable[[], object] = lambda: None,
    ) -> float:
        """Wait for something that the processes do, keeping them; return how long it took."""

        def holds() -> object:
            self.keep()
            return condition()

        return patience.wait_until(holds, what, at_most=at_most, story=self.story, moved=moved)

    def story(self) -> str:
        """What everybody does, for whoever wonders why nothing goes on."""
        return "\n".join([self.ground.story(), *(member.last_words() for member in self.members if member.lives)])


@contextmanager
def a_saga(folder: Path, *, lost_answers: float) -> Iterator[SagaProcesses]:
    """The processes of a saga, not yet started, on servers of its own: its topics have names that are given."""
    with Kafka() as kafka, Postgres() as postgres:
        ground = SagaGround(folder, kafka.address(), postgres.url, lost_answers=lost_answers)
        with contextlib.closing(ground), SagaProcesses(ground) as processes:
            yield processes
