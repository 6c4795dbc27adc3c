"""A database as it is, read without making, migrating or locking anything."""

from __future__ import annotations

from pathlib import Path

import asyncpg

from microflow.embedded.statements import statements
from microflow.errors import SqlError
from microflow.ports import DatabaseState, ServerState, TopicPartition
from microflow.stores.postgres import tables
from microflow.stores.postgres.connecting import not_permitted
from microflow.stores.postgres.errors import translated
from microflow.stores.postgres.session import GUARANTEES, Address, Session

SQL = statements(Path(__file__).with_name("state.sql"))


async def state_of(url: str, *, service: str) -> DatabaseState:
    """What a database says of itself and its server, and what it holds of a service. Raises StoreError."""
    session = await Session.open(Address(url, GUARANTEES))
    try:
        with translated():
            return await _read(session, service)
    except SqlError as error:
        if isinstance(error.__cause__, asyncpg.InsufficientPrivilegeError):
            raise not_permitted(url, error.__cause__) from error
        raise
    finally:
        await session.close()


async def _read(session: Session, service: str) -> DatabaseState:
    there = await tables.versions(session)
    known = tables.own_migrations()
    (server,) = await session.fetch(SQL["server"])
    nothing = DatabaseState(
        product=f"PostgreSQL {server['version'].split()[0]}",
        version=max(there, default=0),
        known=max(each.number for each in known),
        pending=tuple(each.name for each in known if each.number not in there),
        needs=max(there.values(), default=0),
        server=await _server(session),
    )
    if not there or nothing.is_newer:
        return nothing
    (counts,) = await session.fetch(SQL["counts"], service)
    return DatabaseState(
        product=nothing.product,
        version=nothing.version,
        known=nothing.known,
        pending=nothing.pending,
        needs=nothing.needs,
        applied=dict(await session.fetch(SQL["applied"], service)),
        cluster_id=(await session.fetch(SQL["cluster"]))[0]["cluster_id"],
        services=tuple(row["service"] for row in await session.fetch(SQL["services"])),
        watermarks={
            TopicPartition(topic, number): watermark
            for topic, number, watermark in await session.fetch(SQL["watermarks"], service)
        },
        outbox=counts["outbox"],
        outbox_oldest=counts["outbox_oldest"],
        inbox=max(counts["inbox"], counts["inbox_estimate"]),
        inbox_bytes=counts["inbox_bytes"],
        parked=counts["parked"],
        dead_letters=counts["dead_letters"],
        server=nothing.server,
    )


async def _server(session: Session) -> ServerState:
    (said,) = await session.fetch(SQL["server"])
    oldest = await session.fetch(SQL["oldest transaction"])
    return ServerState(
        read_only=said["read_only"],
        connections=said["connections"],
        most_connections=said["most_connections"],
        oldest_transaction=oldest[0]["xact_start"] if oldest else None,
        oldest_owner=oldest[0]["owner"] if oldest else "",
        settings=dict(await session.fetch(SQL["settings"])),
    )
