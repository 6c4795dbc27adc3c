"""How our own tables hold records, and the words of a small vocabulary."""

from __future__ import annotations

from collections.abc import Mapping

from microflow.embedded.headers import decode_headers
from microflow.ports import ClaimStatus, DeadLetterState, Order, Record
from microflow.stores.postgres.session import Row

STATUSES: Mapping[ClaimStatus, int] = {"done": 0, "parked": 1, "dead": 2}
ORDERS: tuple[Order, ...] = ("none", "handler", "key")
ORDERINGS: Mapping[Order, int] = {order: number for number, order in enumerate(ORDERS)}
STATES: tuple[DeadLetterState, ...] = ("dead", "redriving", "done")


def storable(text: str) -> str:
    """A text as PostgreSQL takes it: whatever an exception says, its dead letter must be stored."""
    return text.encode(errors="backslashreplace").decode().replace("\x00", "\\x00")


def record_of(row: Row) -> Record:
    """The record that a row of a table keeps, with the number of its partition."""
    return Record(
        row["topic"],
        row["number"],
        row["key"],
        row["value"],
        decode_headers(row["headers"]),
        row["timestamp"],
        row["offset"],
    )
