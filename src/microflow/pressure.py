"""Pressure: everything that holds a service back and lets the rest of it go on, in one place for whoever asks."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal, TypeAlias

from microflow.caps import Caps
from microflow.circuits import Circuits

Kind: TypeAlias = Literal["circuit", "parked", "outbox"]


@dataclass(frozen=True, slots=True)
class Pressed:
    """A handler whose circuit is open (`circuit`) or for which too much is parked (`parked`), or a topic for which too
    much waits in the outbox (`outbox`): its name, the topics that pause, and in one sentence why."""

    kind: Kind
    name: str
    topics: frozenset[str]
    why: str


class Pressure:
    """What the intake pauses for, and readiness and metrics tell."""

    def __init__(self, circuits: Circuits, caps: Caps) -> None:
        self._circuits = circuits
        self._caps = caps

    @property
    def topics(self) -> Collection[str]:
        """The topics of which nothing is read for now."""
        paused = self._caps.topics
        return paused.union(self._circuits.topics) if self._circuits.open else paused

    def now(self) -> tuple[Pressed, ...]:
        """Everything that is pressed."""
        circuits, caps = self._circuits, self._caps
        return (
            *(
                Pressed("circuit", name, circuits.topics_of(name), f"{name} rests: {circuits.error_of(name)}")
                for name in circuits.open
            ),
            *(
                Pressed("parked", name, caps.topics_of(name), f"{count} events are parked for {name}")
                for name, count in caps.handlers.items()
            ),
            *(
                Pressed("outbox", name, caps.topics_of(name), f"{count} events wait in the outbox for {name}")
                for name, count in caps.destinations.items()
            ),
        )
