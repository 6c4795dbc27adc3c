"""One connection to the server, with the settings that the guarantees rest on, and its prepared statements."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import socket
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar
from uuid import UUID

import asyncpg
from asyncpg.prepared_stmt import PreparedStatement

from microflow.stores.postgres.connecting import no_connection
from microflow.stores.postgres.errors import FROM_DRIVER

MOST_PREPARED = 256
PATIENCE_TO_CONNECT = timedelta(seconds=10)
PATIENCE_TO_CLOSE = timedelta(seconds=1)
LONGEST_COMMAND = timedelta(seconds=40)

GUARANTEES: Mapping[str, str] = {
    "application_name": "microflow",
    "synchronous_commit": "on",
    "idle_in_transaction_session_timeout": "5s",
    "lock_timeout": "3s",
    "statement_timeout": "30s",
    # So that the server, too, notices a peer that is gone without a word, and frees its locks.
    "tcp_keepalives_idle": "10",
    "tcp_keepalives_interval": "3",
    "tcp_keepalives_count": "3",
    "tcp_user_timeout": "20000",
}
"""What every session asks of the server. A paused process frees its locks, and nobody waits for ever."""

LOOKUPS: Mapping[str, str] = {
    # The plan of a statement is kept, and these tables are empty now and large a minute later: for our own statements
    # an index is never wrong, and the plan made for an empty table is (a factor of five, and worse every minute).
    "enable_seqscan": "off",
    "enable_bitmapscan": "off",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
    "jit": "off",
}
"""For sessions in which only our own statements run."""


T = TypeVar("T")

_BIRTHS = itertools.count()


def next_birth() -> int:
    """A number that grows: a session with a lower one was connected before this call."""
    return next(_BIRTHS)


class Row(asyncpg.Record):  # type: ignore[misc]  # the driver has no types
    """A row of a result: a mapping from column name to value, indexed by position as well."""


Mapping.register(Row)


@dataclass(frozen=True, slots=True)
class Address:
    """Where the server is, and how each session is set up. `url` holds a password: never shown."""

    url: str
    settings: Mapping[str, str]

    def __repr__(self) -> str:
        return "Address(…)"


class Session:
    """A connection that is used by one task at a time. What the driver raises is raised as it is."""

    def __init__(self, raw: Any) -> None:
        self.raw = raw
        self.birth = next_birth()
        self._names = 0
        self._prepared: OrderedDict[str, PreparedStatement[Any]] = OrderedDict()

    @classmethod
    async def open(cls, address: Address, *, for_handlers: bool = False) -> Session:
        """Connect. Raises StoreError."""
        try:
            raw = await asyncpg.connect(
                address.url,
                timeout=PATIENCE_TO_CONNECT.total_seconds(),
                command_timeout=LONGEST_COMMAND.total_seconds(),
                server_settings=dict(address.settings),
                statement_cache_size=0,
                record_class=Row,
            )
            session = cls(raw)
            session._keep_alive()
            if for_handlers:
                await session._take_values()
        except (*FROM_DRIVER, ValueError) as cause:
            raise no_connection(address.url, cause) from cause
        return session

    @property
    def closed(self) -> bool:
        return bool(self.raw.is_closed())

    @property
    def in_transaction(self) -> bool:
        return not self.closed and bool(self.raw.is_in_transaction())

    async def prepared(self, sql: str) -> PreparedStatement[Any]:
        """A statement of this connection, prepared once."""
        statement = self._prepared.get(sql)
        if statement is None:
            # Without a name the driver would have it parsed and planned anew each time.
            self._names += 1
            statement = await self.raw.prepare(sql, name=f"microflow_{self._names}")
            self._prepared[sql] = statement
            if len(self._prepared) > MOST_PREPARED:
                self._prepared.popitem(last=False)
        else:
            self._prepared.move_to_end(sql)
        return statement

    async def run(self, sql: str, use: Callable[[PreparedStatement[Any]], Awaitable[T]]) -> T:
        """Use a statement, prepared once, unless its parameters do not fit any more: a table may have been altered."""
        known = sql in self._prepared
        statement = await self.prepared(sql)
        try:
            return await use(statement)
        except asyncpg.DataError as error:
            if not known or getattr(error, "severity", None) is not None:  # or: the server has seen it, and said no
                raise
            del self._prepared[sql]
            return await use(await self.prepared(sql))

    def forget_prepared(self) -> None:
        """A table was made, altered or dropped: what is prepared may not fit it."""
        self._prepared.clear()

    async def fetch(self, sql: str, *args: object) -> Sequence[Row]:
        return await self.run(sql, lambda statement: statement.fetch(*args))

    async def fetch_planned_anew(self, sql: str, *args: object) -> Sequence[Row]:
        """Run a statement whose tables may have been empty when it was last planned: one round trip more."""
        rows: Sequence[Row] = await (await self.raw.prepare(sql)).fetch(*args)
        return rows

    async def script(self, sql: str) -> str:
        """Run statements without parameters in one round trip; return what the server says of the last one."""
        status: str = await self.raw.execute(sql)
        return status

    async def close(self) -> None:
        """Say goodbye, or hang up if that takes long."""
        try:
            await self.raw.close(timeout=PATIENCE_TO_CLOSE.total_seconds())
        except FROM_DRIVER:
            self.hang_up()
        except asyncio.CancelledError:
            self.hang_up()
            raise

    def hang_up(self) -> None:
        """Drop the connection at once: the server rolls back what is open."""
        self.raw.terminate()

    def _keep_alive(self) -> None:
        # asyncpg has no setting for it. Without, a server that vanished is waited for until the kernel's own two hours.
        transport = getattr(self.raw, "_transport", None)
        link = transport.get_extra_info("socket") if transport is not None else None
        if link is None or link.family not in {socket.AF_INET, socket.AF_INET6}:
            return
        with contextlib.suppress(OSError):
            link.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for name, value in (
                ("TCP_KEEPIDLE", 10),
                ("TCP_KEEPINTVL", 3),
                ("TCP_KEEPCNT", 3),
                ("TCP_USER_TIMEOUT", 20_000),
            ):
                if (option := getattr(socket, name, None)) is not None:
                    link.setsockopt(socket.IPPROTO_TCP, option, value)

    async def _take_values(self) -> None:
        """Values as they are on every store: JSON as what it says, and the standard library's own UUID."""
        schema = "pg_catalog"
        for name in ("json", "jsonb"):
            await self.raw.set_type_codec(name, schema=schema, encoder=_json, decoder=json.loads)
        await self.raw.set_type_codec("uuid", schema=schema, encoder=_uuid, decoder=_to_uuid, format="binary")


def _json(value: object) -> str:
    if isinstance(value, str):  # the text of a JSON value
        return value
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def _uuid(value: UUID | str) -> bytes:
    return value.bytes if isinstance(value, UUID) else UUID(value).bytes


def _to_uuid(value: bytes) -> UUID:
    return UUID(bytes=bytes(value))
