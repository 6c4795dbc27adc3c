"""What the scenarios ask of whoever runs them."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Protocol

from microflow.ports import Store


@dataclass(frozen=True, slots=True)
class Abilities:
    """What a store can do, beyond what it must. A scenario that needs more is left out.

    `several_services` may keep their tables in one database. `several_handles`: several processes of a service may
    use one database at once. `writers_at_once`: transactions of several handles may be open at once, having written.
    `any_decimal`: a `Decimal` of any number of digits comes back, instead of being refused.
    `sessions`: handlers may ask for a session of SQLAlchemy (which must be installed to try that).
    `time_limit` is for one scenario.
    """

    several_services: bool = True
    several_handles: bool = True
    writers_at_once: bool = False
    any_decimal: bool = False
    sessions: bool = True
    time_limit: timedelta = timedelta(seconds=60)


class Harness(Protocol):
    """One database to try a store on. It is empty when a scenario begins."""

    @property
    def abilities(self) -> Abilities: ...

    async def open(self, service: str = "payments") -> Store:
        """Another handle on the same database, as another process would have it. Closing it is the harness's."""
        ...
