"""Servers in containers, where a Docker engine answers. testcontainers is imported only then."""

from __future__ import annotations

import http.client
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from servers.jaeger import USUAL_PORTS, Endpoints
from servers.ports import LOOPBACK, free_ports

KAFKA_IMAGE = "apache/kafka:4.1.0"
POSTGRES_IMAGE = "postgres:18"
JAEGER_IMAGE = "jaegertracing/jaeger:2.21.0"
PLACES = ("/var/run/docker.sock", "~/.docker/run/docker.sock", "~/.colima/default/docker.sock")
PATIENCE = 3.0


def engine() -> str | None:
    """The address of a Docker engine that answers, or None."""
    said = os.environ.get("DOCKER_HOST")
    candidates = [said] if said else [f"unix://{Path(place).expanduser()}" for place in PLACES]
    return next((address for address in candidates if _answers(address)), None)


@contextmanager
def kafka(address: str) -> Iterator[str]:
    """Bootstrap servers of a broker in a container of the engine at `address`."""
    os.environ["DOCKER_HOST"] = address
    from testcontainers.core.container import DockerContainer

    [port] = free_ports(1)
    settings = {
        "KAFKA_NODE_ID": "1",
        "KAFKA_PROCESS_ROLES": "broker,controller",
        "KAFKA_CONTROLLER_QUORUM_VOTERS": "1@localhost:9093",
        "KAFKA_CONTROLLER_LISTENER_NAMES": "CONTROLLER",
        "KAFKA_LISTENERS": "PLAINTEXT://:9092,CONTROLLER://:9093",
        "KAFKA_ADVERTISED_LISTENERS": f"PLAINTEXT://{LOOPBACK}:{port}",
        "KAFKA_LISTENER_SECURITY_PROTOCOL_MAP": "CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT",
        "KAFKA_AUTO_CREATE_TOPICS_ENABLE": "false",
        "KAFKA_GROUP_INITIAL_REBALANCE_DELAY_MS": "0",
        "KAFKA_GROUP_MIN_SESSION_TIMEOUT_MS": "500",
        "KAFKA_OFFSETS_TOPIC_NUM_PARTITIONS": "1",
        "KAFKA_OFFSETS_TOPIC_REPLICATION_FACTOR": "1",
        "KAFKA_TRANSACTION_STATE_LOG_NUM_PARTITIONS": "1",
        "KAFKA_TRANSACTION_STATE_LOG_REPLICATION_FACTOR": "1",
        "KAFKA_TRANSACTION_STATE_LOG_MIN_ISR": "1",
    }
    container = DockerContainer(KAFKA_IMAGE)
    for name, value in settings.items():
        container.with_env(name, value)
    # The port must be known before the start, because the broker tells it to its clients.
    container.with_bind_ports(9092, (LOOPBACK, port))  # type: ignore[arg-type] # handed on to docker-py, which takes it
    with container:
        yield f"{LOOPBACK}:{port}"


@contextmanager
def postgres(address: str) -> Iterator[str]:
    """The URL of a server in a container of the engine at `address`; nothing in it is synced."""
    os.environ["DOCKER_HOST"] = address
    from testcontainers.core.container import DockerContainer

    [port] = free_ports(1)
    container = DockerContainer(POSTGRES_IMAGE).with_env("POSTGRES_HOST_AUTH_METHOD", "trust")
    container.with_bind_ports(5432, (LOOPBACK, port))  # type: ignore[arg-type] # handed on to docker-py, which takes it
    container.with_command("postgres -c fsync=off -c max_connections=200 -c wal_level=logical")
    with container:
        yield f"postgresql://postgres@{LOOPBACK}:{port}/postgres"


@contextmanager
def jaeger(address: str) -> Iterator[str]:
    """The address of an all-in-one in a container of the engine at `address`; its traces are in memory."""
    os.environ["DOCKER_HOST"] = address
    from testcontainers.core.container import DockerContainer

    outside = free_ports(3)
    container = DockerContainer(JAEGER_IMAGE).with_env("JAEGER_LISTEN_HOST", "0.0.0.0")
    for inside, port in zip(USUAL_PORTS, outside, strict=True):
        container.with_bind_ports(inside, (LOOPBACK, port))  # type: ignore[arg-type] # as above
    with container:
        yield Endpoints.on_loopback(*outside).address


def _answers(address: str) -> bool:
    parts = urlsplit(address)
    if parts.scheme not in ("unix", "tcp", "http"):
        return False
    connection = http.client.HTTPConnection(parts.hostname or "localhost", parts.port or 2375, timeout=PATIENCE)
    try:
        if parts.scheme == "unix":
            connection.sock = socket.socket(socket.AF_UNIX)
            connection.sock.settimeout(PATIENCE)
            connection.sock.connect(parts.path)
        connection.request("GET", "/_ping")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
