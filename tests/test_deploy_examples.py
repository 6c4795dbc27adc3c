"""The examples of docs/deploy can be used as they stand: their commands, their probes and the times of their stops."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from microflow.cli.command import command
from microflow.setting_values import span
from microflow.settings import LIMIT_SETTINGS, SETTINGS, TOPIC_SETTINGS

FOLDER = Path(__file__).parents[1] / "docs" / "deploy"
UNIT = (FOLDER / "payments.service").read_text(encoding="utf-8")
TO_LEAVE = timedelta(seconds=10)
"""What a stop needs beyond its drain: until the signal arrives, and until the process has gone."""
KAFKA_SETTING = re.compile(r"MICROFLOW_KAFKA_[A-Z_]+")


def pods() -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    """Each pod that runs a service: where it is written, its specification and its one container."""
    for path in sorted(FOLDER.glob("*.yaml")):
        for document in yaml.safe_load_all(path.read_text(encoding="utf-8")):
            if document["kind"] in ("Deployment", "StatefulSet"):
                pod = document["spec"]["template"]["spec"]
                [container] = pod["containers"]
                yield f"{path.name}: {document['kind']}", pod, container


def jobs() -> Iterator[str]:
    for path in sorted(FOLDER.glob("*.yaml")):
        for document in yaml.safe_load_all(path.read_text(encoding="utf-8")):
            if document["kind"] == "Job":
                [container] = document["spec"]["template"]["spec"]["containers"]
                yield container["command"][-1]


def value_of(words: list[str], flag: str) -> str:
    return words[words.index(flag) + 1]


def check_command(words: Sequence[str]) -> None:
    """Raise what the command itself would raise for these words."""
    assert words[0].rpartition("/")[2] == "microflow"
    verb: click.Command | None = command
    rest = list(words[1:])
    while isinstance(verb, click.Group):
        verb = verb.get_command(click.Context(verb), rest.pop(0))
    assert verb is not None, words
    verb.make_context(verb.name, rest).close()


PODS = list(pods())


@pytest.mark.parametrize(("pod", "container"), [each[1:] for each in PODS], ids=[each[0] for each in PODS])
def test_a_pod_is_given_the_time_to_drain_and_is_asked_where_it_answers(
    pod: dict[str, Any], container: dict[str, Any]
) -> None:
    """Rule 24: all phases of a stop fit into --drain."""
    drain = span(value_of(container["command"], "--drain"), "--drain")
    variables = {each["name"]: each.get("value") for each in container["env"]}
    [port] = container["ports"]

    assert timedelta(seconds=pod["terminationGracePeriodSeconds"]) >= drain + TO_LEAVE
    assert variables["MICROFLOW_HEALTH"] == f":{port['containerPort']}"
    paths = {kind: container[f"{kind}Probe"]["httpGet"] for kind in ("startup", "liveness", "readiness")}
    assert {kind: each["path"] for kind, each in paths.items()} == {
        "startup": "/live",
        "liveness": "/live",
        "readiness": "/ready",
    }
    assert {each["port"] for each in paths.values()} == {port["name"]}


@pytest.mark.parametrize("container", [each[2] for each in PODS], ids=[each[0] for each in PODS])
def test_a_pod_s_command_and_variables_are_those_that_there_are(container: dict[str, Any]) -> None:
    known = {setting.variable for setting in (*SETTINGS, *LIMIT_SETTINGS, *TOPIC_SETTINGS)}

    check_command(container["command"])

    for variable in container["env"]:
        assert variable["name"] in known or KAFKA_SETTING.fullmatch(variable["name"])


@pytest.mark.parametrize("line", list(jobs()))
def test_a_job_s_commands_are_those_that_there_are(line: str) -> None:
    for part in line.split(" && "):
        check_command(shlex.split(part))


def test_the_unit_gives_a_stop_its_time_and_runs_a_command_that_there_is() -> None:
    settings = dict(re.findall(r"^(\w+)=(.*)$", UNIT, re.MULTILINE))
    words = shlex.split(settings["ExecStart"])

    check_command(words)
    assert timedelta(seconds=int(settings["TimeoutStopSec"])) >= span(value_of(words, "--drain"), "--drain") + TO_LEAVE
    assert settings["KillMode"] == "mixed"
    assert settings["RestartPreventExitStatus"] == "2"
