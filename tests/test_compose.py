"""docker-compose.yml says what is promised of it: three servers that tell when they are up, on loopback, and a saga."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
import time
import urllib.request
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import asyncpg
import pytest
import yaml

from servers import docker
from servers.jaeger import Jaeger
from servers.kafka import Kafka
from servers.postgres import Postgres

ROOT = Path(__file__).parents[1]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVERS = {name: service for name, service in COMPOSE["services"].items() if "profiles" not in service}
SAGA = {name: service for name, service in COMPOSE["services"].items() if service.get("profiles") == ["saga"]}


def test_kafka_postgresql_and_jaeger_are_there() -> None:
    assert {name: service["image"] for name, service in SERVERS.items()} == {
        "kafka": docker.KAFKA_IMAGE,
        "postgres": docker.POSTGRES_IMAGE,
        "jaeger": docker.JAEGER_IMAGE,
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


@pytest.mark.local_servers("jaeger")
def test_the_mounted_settings_of_jaegers_pages_lead_from_a_span_to_its_flow() -> None:
    """The container's own option, with the file that is mounted for it."""
    [mount] = SERVERS["jaeger"]["volumes"]
    here, there, _ = mount.split(":")
    options = [option.replace(there, str(ROOT / here)) for option in SERVERS["jaeger"]["command"]]
    assert options != SERVERS["jaeger"]["command"]

    with Jaeger(options=options) as jaeger, urllib.request.urlopen(jaeger.endpoints.query, timeout=10) as answer:
        page = answer.read().decode()

    [settings] = re.findall(r"JAEGER_CONFIG = (\{.*\});", page)
    [pattern] = json.loads(settings)["linkPatterns"]
    assert pattern["key"] == "messaging.message.conversation_id"
    assert pattern["url"] == f"http://localhost:8585/flows/#{{{pattern['key']}}}"


def test_an_image_is_a_plain_name_with_a_version() -> None:
    for service in COMPOSE["services"].values():
        image = service.get("image")
        assert image is None or ("." not in image.split("/")[0].split(":")[0] and ":" in image)


@pytest.mark.parametrize("name", sorted(SAGA.keys() - {"topics"}))
def test_a_part_of_the_saga_waits_for_its_topics_and_its_database(name: str) -> None:
    assert SAGA[name]["depends_on"] == {
        "topics": {"condition": "service_completed_successfully"},
        "postgres": {"condition": "service_healthy"},
    }


@pytest.mark.local_servers("kafka", "postgres")
def test_the_sagas_commands_run_the_order_to_its_end_on_real_servers(tmp_path: Path) -> None:
    """The very commands of the profile, without the containers."""
    services = {name: SAGA[name] for name in SAGA if SAGA[name]["command"][0] == "run"}
    assert set(SAGA) - set(services) == {"topics", "shop"}

    with ExitStack() as stack:
        # Of its own: the saga's topics have fixed names.
        kafka = stack.enter_context(Kafka())
        database = stack.enter_context(Postgres(durable=False)).url
        environment = {
            **os.environ,
            **SAGA["shop"]["environment"],
            "MICROFLOW_KAFKA": kafka.address(),
            "MICROFLOW_DATABASE": database,
            "ORDER_SAGA_LEDGER": str(tmp_path / "ledger.db"),
        }

        def start(name: str) -> subprocess.Popen[bytes]:
            log = stack.enter_context((tmp_path / f"{name}.log").open("wb"))
            return subprocess.Popen(
                [sys.executable, "-m", "microflow", *SAGA[name]["command"]],
                cwd=ROOT / "examples" / "order_saga",
                env=environment,
                stdout=log,
                stderr=log,
            )

        assert start("topics").wait(60) == 0, (tmp_path / "topics.log").read_text()
        for name in services:
            stack.callback(end, start(name))
        assert start("shop").wait(60) == 0, (tmp_path / "shop.log").read_text()

        deadline = time.monotonic() + 90
        while asyncio.run(endings(database)) != ["completed"]:
            logs = "\n".join(log.read_text()[-600:] for log in tmp_path.glob("*.log"))
            assert time.monotonic() < deadline, logs
            time.sleep(0.1)


def end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()


async def endings(database: str) -> list[str]:
    connection = await asyncpg.connect(database)
    try:
        return [row["ending"] for row in await connection.fetch("select ending from endings")]
    except asyncpg.UndefinedTableError:
        return []
    finally:
        await connection.close()
