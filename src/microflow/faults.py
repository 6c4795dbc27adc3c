"""Named places where a process may die, so that a harness can kill it at each and look at what is left."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, TypeAlias

FaultPoint: TypeAlias = Literal[
    "before handler",
    "after handler",
    "before transaction",
    "before claim",
    "after claim",
    "before outbox",
    "after outbox",
    "before commit",
    "after commit",
    "before publish",
    "after publish",
    "before delete",
    "after delete",
    "before watermark",
    "after watermark",
    "before revoke",
    "after revoke",
    "before assign",
    "after assign",
]

Reach: TypeAlias = Callable[[FaultPoint], None]
"""Called when a fault point is reached. It may not return."""


def pass_by(point: FaultPoint) -> None:
    """Reach a fault point in production: nothing happens there."""
