"""What the handlers under test are given besides their event: who runs them, what may go wrong, what they leave."""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from microflow.context import Context
from microflow.errors import Reject
from microflow.retries import Retry

PATIENT = Retry(attempts=50, first_delay=timedelta(milliseconds=10), max_delay=timedelta(milliseconds=50))

# `owner` is who owns the partition by the database at the moment of the write: another process than the one that
# writes would mean a commit under an old epoch. No unique index: an effect that comes twice must show.
TABLE = """
create table effects (
    position {position},
    handler text not null, event_id text not null, topic text not null, "key" text not null,
    process text not null, owner text not null
);
"""
EFFECT = """
insert into effects (handler, event_id, topic, "key", process, owner)
select $1, $2, $3, $4, $5, owner from {partitions} where service = $6 and topic = $3 and number = $7
"""


@dataclass(frozen=True, slots=True)
class Dialect:
    """How the table of effects is made, and how one is written, in one kind of database."""

    table: str
    effect: str


SQLITE = Dialect(
    TABLE.format(position="integer primary key autoincrement"), EFFECT.format(partitions="microflow_partitions")
)
POSTGRES = Dialect(
    TABLE.format(position="bigint generated always as identity primary key"),
    EFFECT.format(partitions="microflow.partitions"),
)

TOO_SLOW_FOR_A_TRANSACTION = frozenset({"slow", "long"})


@dataclass(frozen=True, slots=True)
class Situation:
    """One process under test. Executions are noted in `notes` when they begin; `slow` events wait for `gate`, `long`
    ones take so many seconds."""

    process: str
    notes: Path
    gate: Path | None
    dialect: Dialect
    long: float = 0.0

    async def play(self, kind: str, context: Context) -> None:
        """Do to an event what its kind says, before it has its effect."""
        self.note(context)
        if kind == "slow" and self.gate is not None:
            while not self.gate.exists():  # noqa: ASYNC110 - another process opens it
                await asyncio.sleep(0.005)
        if kind == "long":
            await asyncio.sleep(self.long)
        if kind == "late":
            await asyncio.sleep(0.03)
        if kind == "flaky" and context.attempt <= 2:
            raise TimeoutError(f"attempt {context.attempt} of {context.handler}")

    def reject(self, kind: str) -> None:
        if kind == "hopeless":
            raise Reject("it should never have been sent")

    def effect(self, context: Context) -> tuple[Any, ...]:
        """The statement that writes an effect, and its arguments."""
        record = context.record
        return (
            self.dialect.effect,
            context.handler,
            context.event_id,
            record.topic,
            context.key,
            self.process,
            context.service,
            record.partition,
        )

    def note(self, context: Context) -> None:
        line = f"{context.service} {context.handler} {context.event_id} {context.attempt}\n"
        descriptor = os.open(self.notes, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        os.write(descriptor, line.encode())
        os.close(descriptor)
