"""Changes of handlers that only a person can decide: one was renamed, or is gone for good while events wait for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime
from typing import TypeAlias

from microflow.errors import MicroflowError, StoreConflict, TargetError, nearest
from microflow.ports import Changes, DeadLetter, OrderingKey, OutboxRow, Parked, Registry, Store

AT_ONCE = 1000
TRIES = 5
RETIRED = "retired"

CopyOf: TypeAlias = Callable[[DeadLetter], OutboxRow | None]


def no_copy(letter: DeadLetter) -> OutboxRow | None:
    """For a log without a topic of dead letters, or one that cannot be asked."""
    return None


async def retire_handler(store: Store, name: str, *, now: datetime, copy_of: CopyOf = no_copy) -> int:
    """Forget a handler. What waits for it becomes dead letters, with all bytes; return how many there were.

    `copy_of` makes the rows that copy them to the topic of the service's dead letters.

    Raises TargetError for one that nothing is known of, and MicroflowError while a process that lives has it.
    """
    registry = await checked(store, name, now=now)
    if name in registry.handlers:
        # First: while the others work, they park every event of its for whoever may come with it.
        triggers = registry.handlers[name].triggers.keys()
        await store.handlers.forget({name: triggers}, now=now, although_awaited=True)
        await _check_nobodys(store, name, now=now)
    retired, conflicts = 0, 0
    while rows := await store.parking.waiting(name, limit=AT_ONCE):
        letters = await _letters(store, rows, now=now)
        copies = _copies(letters, copy_of)
        keys = {OrderingKey(copy.topic, copy.key) for copy in copies if copy.key is not None}
        try:
            async with store.transaction() as transaction:
                await transaction.fence({}, keys=keys)
                await transaction.write(Changes(dead_letters=letters, outbox=copies))
        except StoreConflict:  # a service at work holds some of these keys, and wants others
            conflicts += 1
            if conflicts == TRIES:
                raise
        else:
            retired += len(rows)
    return retired


async def rename_handler(store: Store, old: str, new: str, *, now: datetime) -> int:
    """Give what a handler has done, and what waits or is dead for it, to another name; return how many wait.

    Raises TargetError for one that nothing is known of, and MicroflowError while a process that lives has it.
    """
    await checked(store, old, now=now)
    waiting = (await store.parking.counts()).get(old, 0)
    if not await store.handlers.rename(old, new, now=now):
        await _check_nobodys(store, old, now=now)
    return waiting


async def checked(store: Store, name: str, *, now: datetime) -> Registry:
    """The registry, after it was seen that a handler can be changed. Raises as `retire_handler` does."""
    registry = await store.handlers.registry(now=now)
    known = {*registry.handlers, *filter(None, await store.parking.counts())}
    if name not in known and not await store.dead_letters.list(handler=name, limit=1):
        near = nearest(name, known)
        raise TargetError(
            f"There is no handler {name} here.",
            why=f"There are {', '.join(sorted(known))}." if known else "No handler has been registered.",
            fix=f"Did you mean {near}?" if near else None,
        )
    _refuse_living(registry, name)
    return registry


async def _check_nobodys(store: Store, name: str, *, now: datetime) -> None:
    # Somebody has come with it meanwhile; otherwise there is nothing to say.
    _refuse_living(await store.handlers.registry(now=now), name)


def _refuse_living(registry: Registry, name: str) -> None:
    if having := sorted(owner for owner, handlers in registry.processes.items() if name in handlers):
        raise MicroflowError(
            f"The handler {name} is at work in {', '.join(having)}.",
            why="What it does now would be done under a name that means nothing any more.",
            fix="Stop the processes that have it first. One that was killed counts as alive for half a minute.",
        )


async def _letters(store: Store, rows: Sequence[Parked], *, now: datetime) -> list[DeadLetter]:
    # One that halts its key is a dead letter already, and says more than its row.
    handler = rows[0].claim.handler
    halting = {row.claim for row in rows if row.due is None}
    found = {letter.claim: letter for letter in await _dead_letters(store, handler)} if halting else {}
    return [replace(found[row.claim], id=0) if row.claim in found else _letter(row, now=now) for row in rows]


def _copies(letters: Sequence[DeadLetter], copy_of: CopyOf) -> list[OutboxRow]:
    # One that was a dead letter before was copied then.
    copies = (copy_of(letter) for letter in letters if letter.reason == RETIRED)
    return [copy for copy in copies if copy is not None]


async def _dead_letters(store: Store, handler: str) -> list[DeadLetter]:
    letters: list[DeadLetter] = []
    while page := await store.dead_letters.list(handler=handler, limit=AT_ONCE, after=letters[-1].id if letters else 0):
        letters += page
    return letters


def _letter(row: Parked, *, now: datetime) -> DeadLetter:
    return DeadLetter(
        claim=row.claim,
        record=row.record,
        reason=RETIRED,
        error=row.error or "its handler was retired before it came to it",
        trace="",
        attempts=row.attempt,
        first_failed_at=row.first_failed_at or now,
        failed_at=now,
        order=row.order,
        content=row.content,
    )
