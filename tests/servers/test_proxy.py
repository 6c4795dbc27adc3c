"""A proxy breaks a connection to a real server in the ways in which networks do."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from urllib.parse import urlsplit

import asyncpg
import pytest

from servers.finding import Found
from servers.kafka import Kafka, until_ready
from servers.ports import LOOPBACK
from servers.proxy import Proxy
from tests.asynchronous import asynchronous


@pytest.fixture
def proxy(postgres: Found) -> Iterator[Proxy]:
    port = urlsplit(postgres.address).port
    assert port is not None
    with Proxy(port) as proxy:
        yield proxy


@pytest.fixture
def proxied(proxy: Proxy, postgres_url: str) -> str:
    """The test's database, through the proxy."""
    return urlsplit(postgres_url)._replace(netloc=f"postgres@{LOOPBACK}:{proxy.port}").geturl()


async def connect(url: str) -> asyncpg.Connection:
    return await asyncpg.connect(url, timeout=5)


async def is_there(url: str, table: str) -> bool:
    connection = await connect(url)
    try:
        return bool(await connection.fetchval("select to_regclass($1) is not null", table))
    finally:
        await connection.close()


@asynchronous
async def test_it_carries_what_is_said(proxy: Proxy, proxied: str) -> None:
    connection = await connect(proxied)

    assert await connection.fetchval("select 1") == 1
    assert proxy.connections == 1
    await connection.close()


@asynchronous
async def test_broken_connections_are_noticed_and_new_ones_are_carried(proxy: Proxy, proxied: str) -> None:
    connection = await connect(proxied)

    proxy.break_connections()

    with pytest.raises((asyncpg.PostgresError, asyncpg.InterfaceError, OSError)):
        await connection.fetchval("select 1")
    assert not await is_there(proxied, "anything")


@asynchronous
async def test_a_cut_cable_lets_nobody_in_until_it_heals(proxy: Proxy, proxied: str) -> None:
    proxy.cut()

    with pytest.raises((asyncpg.PostgresError, OSError)):
        await connect(proxied)
    proxy.heal()
    assert not await is_there(proxied, "anything")


@asynchronous
async def test_in_silence_nothing_arrives_and_afterwards_all_of_it_does(proxy: Proxy, proxied: str) -> None:
    connection = await connect(proxied)

    proxy.silence()
    asked = asyncio.ensure_future(connection.fetchval("select 7"))

    with pytest.raises(TimeoutError):
        await asyncio.wait_for(asyncio.shield(asked), 0.2)
    proxy.heal()
    assert await asyncio.wait_for(asked, 5) == 7
    await connection.close()


@asynchronous
async def test_a_forgotten_server_is_gone_and_the_client_is_not_told(
    proxy: Proxy, proxied: str, postgres_url: str
) -> None:
    connection = await connect(proxied)
    pid = await connection.fetchval("select pg_backend_pid()")

    proxy.forget("client")

    with pytest.raises(TimeoutError):
        await connection.fetchval("select 1", timeout=0.3)
    await ends(postgres_url, pid)
    connection.terminate()


@asynchronous
async def test_a_forgotten_client_is_gone_and_the_server_keeps_its_session(
    proxy: Proxy, proxied: str, postgres_url: str
) -> None:
    connection = await connect(proxied)
    pid = await connection.fetchval("select pg_backend_pid()")

    proxy.forget("server")

    with pytest.raises((asyncpg.PostgresError, asyncpg.InterfaceError, OSError)):
        await connection.fetchval("select 1")
    assert await sessions(postgres_url, pid) == 1
    proxy.close()
    await ends(postgres_url, pid)


@asynchronous
async def test_of_two_commits_the_second_ones_answer_is_lost_and_both_are_committed(
    proxy: Proxy, proxied: str, postgres_url: str
) -> None:
    connection = await connect(proxied)
    proxy.lose_answer(b"COMMIT\0", spared=1)

    async with connection.transaction():
        await connection.execute("create table first ()")
    with pytest.raises((asyncpg.PostgresError, asyncpg.InterfaceError, OSError)):
        async with connection.transaction():
            await connection.execute("create table second ()")

    assert proxy.wait_for_loss(seconds=5)
    assert await is_there(postgres_url, "first")
    assert await is_there(postgres_url, "second")
    assert not await is_there(proxied, "third")


def test_nobody_listens_when_it_is_closed(proxy: Proxy) -> None:
    proxy.close()

    with socket.socket() as client:
        assert client.connect_ex((LOOPBACK, proxy.port)) != 0


@pytest.mark.local_servers("kafka")
def test_a_broker_behind_proxies_tells_clients_their_addresses() -> None:
    with Kafka(proxied=True) as kafka:
        [broker] = kafka.brokers
        assert broker.proxy is not None
        assert kafka.address() == f"{LOOPBACK}:{broker.proxy.port}"

        broker.proxy.cut()

        with pytest.raises(TimeoutError):
            asyncio.run(until_ready(kafka.address(), seconds=0.5))
        broker.proxy.heal()
        asyncio.run(until_ready(kafka.address()))


async def sessions(url: str, pid: int) -> int:
    connection = await connect(url)
    try:
        return int(await connection.fetchval("select count(*) from pg_stat_activity where pid = $1", pid))
    finally:
        await connection.close()


async def ends(url: str, pid: int) -> None:
    async with asyncio.timeout(5):
        while await sessions(url, pid):  # noqa: ASYNC110 - another process ends it
            await asyncio.sleep(0.02)
