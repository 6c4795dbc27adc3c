"""How our own tables hold the words of a small vocabulary."""

from __future__ import annotations

from collections.abc import Mapping

from microflow.ports import ClaimStatus, DeadLetterState, Order

STATUSES: Mapping[ClaimStatus, int] = {"done": 0, "parked": 1, "dead": 2}
ORDERS: tuple[Order, ...] = ("none", "handler", "key")
ORDERINGS: Mapping[Order, int] = {order: number for number, order in enumerate(ORDERS)}
STATES: tuple[DeadLetterState, ...] = ("dead", "redriving", "done")


def storable(text: str) -> str:
    """A text as PostgreSQL takes it: whatever an exception says, its dead letter must be stored."""
    return text.encode(errors="backslashreplace").decode().replace("\x00", "\\x00")
