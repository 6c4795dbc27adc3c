"""A PostgreSQL that can be stopped, killed, restarted and filled, and fresh databases on it."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from typing import Any

import asyncpg
import pytest

from servers.finding import Found
from servers.folders import is_alive
from servers.ports import answers
from servers.postgres import Postgres, fresh_database

pytestmark = pytest.mark.local_servers("postgres")


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    with Postgres(settings={"work_mem": "1234kB"}) as server:
        yield server


def ask(url: str, statement: str) -> Any:
    async def run() -> Any:
        connection = await asyncpg.connect(url, timeout=5)
        try:
            return await connection.fetchval(statement)
        finally:
            await connection.close()

    return asyncio.run(run())


@pytest.mark.parametrize("end", ["stop", "stop at once", "kill"])
def test_what_was_committed_is_there_after_a_restart(server: Postgres, end: str) -> None:
    with fresh_database(server.url) as url:
        ask(url, "create table kept (value int)")
        ask(url, "insert into kept values (7)")
        pid, port = server.pid, server.port

        if end == "kill":
            server.kill()
        else:
            server.stop(immediate=end == "stop at once")

        assert not is_alive(pid)
        assert not answers(port)
        server.start()
        assert server.port == port
        assert ask(url, "select value from kept") == 7


def test_a_durable_server_syncs_and_a_setting_reaches_it(server: Postgres) -> None:
    assert ask(server.url, "show fsync") == "on"
    assert ask(server.url, "show work_mem") == "1234kB"


def test_a_paused_server_lets_nobody_in_until_it_goes_on(server: Postgres) -> None:
    server.pause()

    with pytest.raises((TimeoutError, OSError)):
        asyncio.run(asyncpg.connect(server.url, timeout=0.5))
    server.resume()
    assert ask(server.url, "select 1") == 1


def test_a_fresh_database_is_empty_and_gone_afterwards(postgres: Found) -> None:
    with fresh_database(postgres.address) as first, fresh_database(postgres.address) as second:
        ask(first, "create table mine ()")

        assert ask(second, "select to_regclass('mine')::text") is None
        assert first != second
    with pytest.raises(asyncpg.InvalidCatalogNameError):
        ask(first, "select 1")


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a disk needs root")
def test_a_server_on_a_small_disk_runs_full_and_works_again_when_there_is_room() -> None:
    with Postgres(size=80) as server:
        ask(server.url, "create table filled (value text)")

        server.fill_disk()
        with pytest.raises((asyncpg.DiskFullError, asyncpg.PostgresConnectionError, OSError)):
            ask(server.url, "insert into filled select repeat(md5(i::text), 300) from generate_series(1, 10000) i")
        server.free_disk()
        server.wait_until_ready()
        ask(server.url, "insert into filled values ('there is room')")
        assert ask(server.url, "select value from filled") == "there is room"
        folder = server.folder

    assert not folder.exists()


def test_nothing_of_a_server_is_left_when_its_block_ends() -> None:
    with Postgres(durable=False) as server:
        pid, folder, log = server.pid, server.folder, server.log

    assert not is_alive(pid)
    assert not folder.exists()
    assert not log.exists()
