"""Where a server comes from: an address in the environment, a Docker engine, a local install; or it is missing."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

from servers import docker, jaeger, kafka, postgres
from servers.downloads import NotInstalled, build_jaeger
from servers.jaeger import Endpoints
from servers.processes import ServerFailed


@dataclass(frozen=True, slots=True)
class Found:
    """A server that answers: bootstrap servers or a URL, and where it came from."""

    address: str
    origin: str


class Missing(Exception):
    """This machine cannot offer a server; the message says what was tried and how to get one."""


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of server: how to reach one that runs already, and how to start one.

    `install` gets all that a local one needs, however long that takes; `local` raises NotInstalled rather than take
    minutes for it.
    """

    name: str
    title: str
    variable: str
    example: str
    install: Callable[[], None]
    local: Callable[[], AbstractContextManager[str]]
    container: Callable[[str], AbstractContextManager[str]]
    ready: Callable[[str], None]
    how_to_get: str


@contextmanager
def a_server(kind: Kind, *, install: bool = False) -> Iterator[Found]:
    """A server of that kind, ready for clients; what was started for it ends with the block.

    With `install`, what a local one needs is first installed, even if that takes minutes.
    Raises Missing, or ServerFailed if there is one and it does not work.
    """
    address = os.environ.get(kind.variable)
    if address:
        _check_address(kind, address)
        yield Found(address, kind.variable)
        return
    engine = docker.engine()
    if engine is not None:
        with kind.container(engine) as address:
            kind.ready(address)
            yield Found(address, "Docker")
        return
    try:
        if install:
            kind.install()
        server = kind.local()
    except NotInstalled as missing:
        raise Missing(what_was_tried(kind, str(missing))) from None
    with server as address:
        yield Found(address, "local install")


def _check_address(kind: Kind, address: str) -> None:
    try:
        kind.ready(address)
    except TimeoutError as late:
        raise ServerFailed(f"What {kind.variable} names does not answer: {late}") from None


def what_was_tried(kind: Kind, missing: str) -> str:
    """Why there is no server of that kind, and how to get one."""
    return (
        f"{kind.title} is missing: {kind.variable} is not set, no Docker engine answers, and there is no local install "
        f"({missing}). Start Docker, or set {kind.variable}={kind.example}, or {kind.how_to_get}."
    )


def _local_kafka() -> AbstractContextManager[str]:
    kafka.require()

    @contextmanager
    def running() -> Iterator[str]:
        with kafka.Kafka() as server:
            yield server.address()

    return running()


def _local_postgres() -> AbstractContextManager[str]:
    postgres.require()

    @contextmanager
    def running() -> Iterator[str]:
        with postgres.Postgres(durable=False) as server:
            yield server.url

    return running()


def _local_jaeger() -> AbstractContextManager[str]:
    jaeger.require()

    @contextmanager
    def running() -> Iterator[str]:
        with jaeger.Jaeger() as server:
            yield server.endpoints.address

    return running()


KINDS = {
    "kafka": Kind(
        name="kafka",
        title="Kafka",
        variable="MICROFLOW_TEST_KAFKA",
        example="localhost:9092",
        install=kafka.require,
        local=_local_kafka,
        container=docker.kafka,
        ready=lambda address: asyncio.run(kafka.until_ready(address)),
        how_to_get="install Maven and Java 17 or newer (apt install maven)",
    ),
    "postgres": Kind(
        name="postgres",
        title="PostgreSQL",
        variable="MICROFLOW_TEST_POSTGRES",
        example="postgresql://postgres@localhost:5432/postgres",
        install=postgres.require,
        local=_local_postgres,
        container=docker.postgres,
        ready=lambda address: asyncio.run(postgres.until_ready(address)),
        how_to_get="install PostgreSQL (apt install postgresql)",
    ),
    "jaeger": Kind(
        name="jaeger",
        title="Jaeger",
        variable="MICROFLOW_TEST_JAEGER",
        example="http://localhost:16686",
        install=build_jaeger,
        local=_local_jaeger,
        container=docker.jaeger,
        ready=lambda address: jaeger.until_ready(Endpoints.of(address)),
        how_to_get="install Go 1.21 or newer (apt install golang) and run make prepare",
    ),
}
