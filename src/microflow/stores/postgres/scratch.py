"""Databases that are there for a while only: for demos, which leave nothing behind."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from urllib.parse import urlsplit, urlunsplit

from microflow.stores.postgres.errors import translated
from microflow.stores.postgres.session import GUARANTEES, Address, Row, Session

_NAME = re.compile(r"[a-z][a-z0-9_]{0,62}")


@asynccontextmanager
async def scratch_databases(url: str, names: Collection[str]) -> AsyncIterator[Mapping[str, str]]:
    """Fresh databases of these names on the server of a URL, each with its own URL; dropped after the block.

    Raises StoreError, also if the user may not create databases.
    """
    assert all(_NAME.fullmatch(name) for name in names), names
    await _run(url, [f"create database {name}" for name in names])
    try:
        yield {name: urlunsplit(urlsplit(url)._replace(path=f"/{name}")) for name in names}
    finally:
        await _run(url, [f"drop database if exists {name} with (force)" for name in names])


async def fetch(url: str, sql: str) -> Sequence[Row]:
    """The rows of one question. Raises StoreError."""
    session = await Session.open(Address(url, GUARANTEES))
    try:
        with translated():
            return await session.fetch(sql)
    finally:
        await session.close()


async def _run(url: str, statements: Sequence[str]) -> None:
    session = await Session.open(Address(url, GUARANTEES))
    try:
        with translated():
            for statement in statements:
                await session.script(statement)
    finally:
        await session.close()
