"""What a chain stands on: a log, a database for each service, and eyes on both that are not the runtime's."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from microflow.clocks import SystemClock
from microflow.ports import Record
from microflow.transports.local import LocalTransport
from tests.crash.embedded_tables import read_log, read_tables
from tests.crash.readings import PARTITIONS, Snapshot


class Ground(Protocol):
    """Where a chain's events and rows are. It is there before the first process and after the last one."""

    prefix: str
    """What the names of this chain's services and topics begin with."""

    sees_deaths: bool
    """Whether the log notices at once that a process has died, or only when its session is over."""

    def orders(self, service: str) -> Mapping[str, Any]:
        """How a process of the service is told where the log and its database are."""
        ...

    def publish(self, records: Sequence[Record]) -> None: ...

    def snapshot(self) -> Snapshot:
        """All of the log and of both services' tables. Raises whatever keeps it from being read."""
        ...

    def hold_relay(self, service: str) -> None:
        """Keep a service from publishing, by a lease that nobody holds."""
        ...

    def let_relay_go(self, service: str) -> None: ...

    def story(self) -> str:
        """What a person would look at if nothing went on."""
        ...

    def close(self) -> None: ...


class EmbeddedGround:
    """A log and databases in the files of a folder."""

    prefix = ""
    sees_deaths = True

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def orders(self, service: str) -> Mapping[str, Any]:
        return {}

    def publish(self, records: Sequence[Record]) -> None:
        async def publish() -> None:
            transport = LocalTransport.open(self._folder / "log.db", clock=SystemClock(), partitions=PARTITIONS)
            assert not any(await transport.publish(records))
            await transport.close()

        asyncio.run(publish())

    def snapshot(self) -> Snapshot:
        # Upstream is read first: what it has done shows further down.
        first = read_tables(self._folder / "first.db")
        log = read_log(self._folder / "log.db")
        return Snapshot(log, {"first": first, "second": read_tables(self._folder / "second.db")})

    def hold_relay(self, service: str) -> None:
        with self._database(service) as connection:
            connection.execute("insert or replace into microflow_lease values (1, 'nobody', ?)", (2**62,))
            # A lease that ends in a later age does not count, so it may not be taken over either.
            connection.execute("create trigger held before update on microflow_lease begin select raise(ignore); end")

    def let_relay_go(self, service: str) -> None:
        with self._database(service) as connection:
            connection.execute("drop trigger held")
            connection.execute("delete from microflow_lease")

    def story(self) -> str:
        return ""

    def close(self) -> None:
        """The files are the test's."""

    @contextlib.contextmanager
    def _database(self, service: str) -> Any:
        with contextlib.closing(sqlite3.connect(self._folder / f"{service}.db", timeout=10)) as connection, connection:
            yield connection
