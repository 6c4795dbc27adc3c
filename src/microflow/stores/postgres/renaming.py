"""A handler gets another name: what it has claimed, and what is parked or dead for it, is the other name's."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

from microflow.embedded.statements import statements
from microflow.ports import OrderingKey
from microflow.stores.postgres.names import HANDLERS, Names
from microflow.stores.postgres.parking import ParkingInTransaction
from microflow.stores.postgres.session import Session

SQL = statements(Path(__file__).with_name("renaming.sql"))


async def rename(session: Session, names: Names, old: str, new: str, *, now: datetime) -> None:
    """Rename a handler inside a transaction, and remember that it was."""
    service = names.service
    await session.fetch(HANDLERS["intern"], service, [old])
    numbers = {row["name"]: row["id"] for row in await session.fetch(HANDLERS["find"], service, [old, new])}
    if new in numbers:
        await _merge(session, names, numbers[old], numbers[new])
    else:
        await session.fetch(SQL["rename"], new, numbers[old])
    await session.fetch(SQL["was not renamed"], service, new)
    await session.fetch(SQL["was renamed on"], service, old, new)
    await session.fetch(SQL["was renamed"], service, old, new, now)


async def _merge(session: Session, names: Names, source: int, target: int) -> None:
    parking = ParkingInTransaction(session, names)
    rows = await session.fetch_planned_anew(SQL["keys that wait for a handler"], source)
    keys = [OrderingKey(row["topic"], row["key"]) for row in rows]
    await parking.lock(keys)
    if lost := await session.fetch_planned_anew(SQL["claimed by both"], source, target):
        losers = ([row["loser"] for row in lost], [row["digest"] for row in lost])
        await parking.remove(*losers)
        await session.fetch_planned_anew(SQL["drop dead letters"], *losers)
        await session.fetch_planned_anew(SQL["drop claims"], *losers)
    for table in ("move claims", "move parked", "move dead letters", "move triggers"):
        await session.fetch_planned_anew(SQL[table], source, target)
    await session.fetch(SQL["drop triggers"], source)
    await session.fetch(SQL["drop handler"], source)
    await parking.free_anew(keys)
