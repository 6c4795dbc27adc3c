"""A process that shares a SQLite file: it holds the write lock until told, or commits as fast as it can."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from microflow.clocks import SystemClock
from microflow.embedded.database import Database


async def hold(database: Database) -> None:
    async with database.writing() as connection:
        connection.execute("create table if not exists held (id integer)")
        connection.execute("insert into held values (1)")
        say("holding")
        sys.stdin.readline()
    say("committed")


async def write(database: Database, rows: int) -> None:
    async with database.writing() as connection:
        connection.execute("create table if not exists written (process text, number integer, content blob)")
    say("ready")
    sys.stdin.readline()
    for number in range(rows):
        async with database.writing() as connection:
            connection.execute("insert into written values (?, ?, zeroblob(20000))", (sys.argv[3], number))
    say("done")


def say(word: str) -> None:
    print(word, flush=True)  # noqa: T201 - this is how it talks to the test


async def main() -> None:
    database = Database.open(Path(sys.argv[1]), clock=SystemClock())
    if sys.argv[2] == "hold":
        await hold(database)
    else:
        await write(database, int(sys.argv[2]))
    database.close()


if __name__ == "__main__":
    asyncio.run(main())
