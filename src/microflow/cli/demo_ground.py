"""What the demo stands on: an embedded log and SQLite files in a folder, or a real Kafka and a real PostgreSQL."""

from __future__ import annotations

import random
import shutil
import sqlite3
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, closing
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

from microflow.cli.paths import database_in_words, log_in_words
from microflow.cli.topic_plan import needs_of
from microflow.clocks import SystemClock
from microflow.connect import LOCAL, SQLITE, check_database, fetch_rows, is_postgres, scratch_databases, sqlite_path
from microflow.errors import SettingsError
from microflow.ports import TopicLayout, TopicPartition, Transport
from microflow.reaching import Reaching
from microflow.service import Definition
from microflow.settings import Settings, read_settings

SUMS = "select state, amount from payments"
MOVEMENTS = "select movement, amount from ledger"


@dataclass(frozen=True, slots=True)
class Ground:
    """`folder` is where services run, `environment` what they are told; `transport` is the demo's own way to the log.
    `run` tells this run from others on the same log, `kept` says what of it is there afterwards."""

    folder: Path
    transport: Transport
    environment: Mapping[str, str]
    words: str
    kept: str
    payments: str
    run: str

    async def money(self) -> dict[str, Decimal]:
        """What the card company moved, and what payments knows of it, each by its own books."""
        moved = _sums(_rows(self.folder / ".microflow" / "card_company.db", MOVEMENTS))
        states = _sums(await self._of_payments())
        kept = states.get("kept", Decimal(0)) + states.get("owed", Decimal(0))
        return {"taken": moved.get("charge", Decimal(0)), "kept": kept, "refunded": moved.get("refund", Decimal(0))}

    async def _of_payments(self) -> Sequence[Any]:
        if is_postgres(self.payments):
            return await fetch_rows(self.payments, SUMS)
        return _rows(sqlite_path(self.payments), SUMS)


@asynccontextmanager
async def ground(
    definitions: Sequence[Definition], *, kafka: str | None, database: str | None
) -> AsyncIterator[Ground]:
    """Something for services to stand on: what is named, or files in a folder. Nothing of it is left afterwards, but
    for a log that was named.

    Raises SettingsError for a log on which these services have run before.
    """
    folder = Path(tempfile.mkdtemp(prefix="microflow-demo-"))
    run = f"{random.SystemRandom().getrandbits(24):06x}"
    try:
        (folder / ".microflow").mkdir()
        settings = Settings(home=folder, kafka=kafka or f"{LOCAL}{folder / '.microflow' / 'log.db'}")
        settings = read_settings({"kafka": settings.kafka, "database": database}, folder=folder)
        async with AsyncExitStack() as opened:
            transport = await Reaching(settings, clock=SystemClock()).log()
            opened.push_async_callback(transport.close)
            if not settings.kafka.startswith(LOCAL):
                await _lay_out(definitions, transport, settings)
            urls = await opened.enter_async_context(_databases(definitions, settings, database, run=run))
            yield Ground(
                folder=folder,
                transport=transport,
                environment={
                    "MICROFLOW_KAFKA": settings.kafka,
                    "MICROFLOW_DATABASE": "",
                    "MICROFLOW_LOG_LEVEL": "info",
                    **{f"MICROFLOW_{service.upper()}_DATABASE": url for service, url in urls.items()},
                },
                words=f"{log_in_words(kafka) if kafka else 'local log'}, "
                f"{database_in_words(database) if database else 'SQLite'}",
                kept=_kept(kafka),
                payments=urls["payments"],
                run=run,
            )
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@asynccontextmanager
async def _databases(
    definitions: Sequence[Definition], settings: Settings, database: str | None, *, run: str
) -> AsyncIterator[Mapping[str, str]]:
    """The database of each service: files, or fresh ones on the server that was named."""
    services = [definition.name for definition in definitions]
    if database is None:
        yield {service: f"{SQLITE}{settings.folder / f'{service}.db'}" for service in services}
        return
    check_database(database)
    if not is_postgres(database):
        raise SettingsError(
            "The demo makes a database for each of its services.", fix="Leave --database out, or postgresql://…"
        )
    names = {f"microflow_demo_{run}_{service}": service for service in services}
    async with scratch_databases(database, names) as urls:
        yield {names[name]: url for name, url in urls.items()}


def _kept(kafka: str | None) -> str:
    if kafka is None:
        return "nothing is installed or kept"
    if kafka.startswith(LOCAL):
        return "nothing is installed, and nothing but that log is kept"
    return "nothing is installed, and nothing but topics on that Kafka is kept"


async def _lay_out(definitions: Sequence[Definition], transport: Transport, settings: Settings) -> None:
    """Make the topics of the services. Raises SettingsError if there is something in them."""
    needs = needs_of(definitions)
    existing = await transport.topics.describe(needs.keys())
    partitions = [TopicPartition(each.name, number) for each in existing.values() for number in range(each.partitions)]
    if any(bound.end for bound in (await transport.topics.bounds(partitions)).values()):
        raise SettingsError(
            f"The topics of the order saga are in use on {log_in_words(settings.kafka)}.",
            why="What an earlier demo left there would be handled again, in databases that do not know it.",
            fix="A Kafka of its own:  make demo-kafka     or delete them:  kafka-topics.sh --delete --topic "
            f"'{'|'.join(sorted(existing))}'",
        )
    wanted = settings.topic
    layout = TopicLayout(partitions=wanted.partitions or 1, replication=wanted.replication)
    await transport.administration.create({name: layout for name in needs if name not in existing})


def _rows(path: Path, sql: str) -> Sequence[Any]:
    if not path.exists():
        return []
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute(sql).fetchall()


def _sums(rows: Sequence[Any]) -> dict[str, Decimal]:
    sums: dict[str, Decimal] = {}
    for name, amount in rows:
        sums[name] = sums.get(name, Decimal(0)) + Decimal(str(amount)).quantize(Decimal("0.01"))
    return sums
