"""docker-compose.yml says what is promised of it: three servers, on loopback only, and each tells when it is up."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from servers import docker

ROOT = Path(__file__).parents[1]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVERS = {name: service for name, service in COMPOSE["services"].items() if "profiles" not in service}


def test_kafka_postgresql_and_jaeger_are_there() -> None:
    assert {name: service["image"] for name, service in SERVERS.items()} == {
        "kafka": docker.KAFKA_IMAGE,
        "postgres": docker.POSTGRES_IMAGE,
        "jaeger": "jaegertracing/jaeger:2.21.0",
    }


@pytest.mark.parametrize("name", COMPOSE["services"])
def test_a_port_is_bound_on_loopback_only(name: str) -> None:
    service = COMPOSE["services"][name]

    assert [port for port in service.get("ports", []) if not port.startswith("127.0.0.1:")] == []
    assert service.get("network_mode") is None


@pytest.mark.parametrize("name", SERVERS)
def test_a_server_tells_when_it_is_up(name: str) -> None:
    assert SERVERS[name]["healthcheck"]["test"]


def test_kafka_tells_those_on_the_host_and_those_in_containers_addresses_that_each_can_reach() -> None:
    settings = SERVERS["kafka"]["environment"]
    addresses = dict(pair.split("://") for pair in settings["KAFKA_ADVERTISED_LISTENERS"].split(","))

    assert addresses == {"HOST": "localhost:9092", "SERVICES": "kafka:19092"}
    assert {pair.split("://")[0] for pair in settings["KAFKA_LISTENERS"].split(",")} == {*addresses, "CONTROLLER"}
    assert settings["KAFKA_AUTO_CREATE_TOPICS_ENABLE"] == "false"


def test_an_image_is_a_plain_name_with_a_version() -> None:
    for service in COMPOSE["services"].values():
        image = service.get("image")
        assert image is None or ("." not in image.split("/")[0].split(":")[0] and ":" in image)
