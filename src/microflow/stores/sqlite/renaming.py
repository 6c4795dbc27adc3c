"""A handler gets another name: what it has claimed, and what is parked or dead for it, is the other name's."""

from __future__ import annotations

import sqlite3
from datetime import datetime
from pathlib import Path

from microflow.embedded.statements import statements
from microflow.stores.sqlite.columns import microseconds
from microflow.stores.sqlite.names import HANDLERS, NamesInTransaction
from microflow.stores.sqlite.parking import ParkingInTransaction

SQL = statements(Path(__file__).with_name("renaming.sql"))


def rename(connection: sqlite3.Connection, names: NamesInTransaction, old: str, new: str, *, now: datetime) -> None:
    """Rename a handler inside a transaction, and remember that it was."""
    source = names.handler(old)
    target = connection.execute(HANDLERS["find"], (names.service, new)).fetchone()
    if target is None:
        connection.execute(SQL["rename"], (new, source))
    else:
        _merge(connection, names, source, target[0])
    connection.execute(SQL["was not renamed"], (names.service, new))
    connection.execute(SQL["was renamed on"], (names.service, old, new))
    connection.execute(SQL["was renamed"], (names.service, old, new, microseconds(now)))


def _merge(connection: sqlite3.Connection, names: NamesInTransaction, source: int, target: int) -> None:
    parking = ParkingInTransaction(connection, names)
    for digest, is_done_by_old in connection.execute(SQL["claimed by both"], (source, target)).fetchall():
        loser = target if is_done_by_old else source
        parking.remove(loser, digest)
        connection.execute(SQL["drop dead letter"], (loser, digest))
        connection.execute(SQL["drop claim"], (loser, digest))
    keys = connection.execute(SQL["keys that wait for a handler"], (source,)).fetchall()
    for table in ("move claims", "move parked", "move dead letters", "move triggers"):
        connection.execute(SQL[table], (source, target))
    connection.execute(SQL["drop triggers"], (source,))
    connection.execute(SQL["drop handler"], (source,))
    for topic, key in keys:
        parking.free_anew(topic, key)
