"""What a conformance suite is made of: functions that take a harness, each named for the promise that it tries."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass
from datetime import timedelta
from typing import Generic, Protocol, TypeVar


class Limits(Protocol):
    """What all abilities have."""

    @property
    def time_limit(self) -> timedelta: ...


class HasAbilities(Protocol):
    @property
    def abilities(self) -> Limits: ...


HarnessT = TypeVar("HarnessT", bound=HasAbilities)


@dataclass(frozen=True, slots=True)
class Scenario(Generic[HarnessT]):
    """One promise, shown. Calling it returns if the adapter keeps the promise, and raises if not."""

    name: str
    run: Callable[[HarnessT], Awaitable[None]]
    requires: frozenset[str]

    async def __call__(self, harness: HarnessT) -> None:
        async with asyncio.timeout(harness.abilities.time_limit.total_seconds()):
            await self.run(harness)

    def __str__(self) -> str:
        return self.name

    def suits(self, abilities: Limits) -> bool:
        """Whether an adapter with these abilities can be asked to keep this promise."""
        return all(getattr(abilities, ability) for ability in self.requires)


class Scenarios(Generic[HarnessT]):
    """Collects the scenarios of one subject."""

    def __init__(self) -> None:
        self.all: list[Scenario[HarnessT]] = []

    def add(
        self, *, requires: Collection[str] = ()
    ) -> Callable[[Callable[[HarnessT], Awaitable[None]]], Callable[[HarnessT], Awaitable[None]]]:
        """Add a function, which needs certain abilities, under its name read as a sentence."""

        def collect(run: Callable[[HarnessT], Awaitable[None]]) -> Callable[[HarnessT], Awaitable[None]]:
            name: str = getattr(run, "__name__", repr(run))
            self.all.append(Scenario(name.replace("_", " "), run, frozenset(requires)))
            return run

        return collect
