"""What `import microflow` gives: the names of a handler's author, resolved when they are used."""

from __future__ import annotations

import ast
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import microflow


@pytest.mark.parametrize("name", microflow.__all__)
def test_every_public_name_is_there_and_documented(name: str) -> None:
    value = getattr(microflow, name)

    assert value is getattr(import_module(f"microflow.{microflow._ROOMS[name]}"), name)
    assert isinstance(value, str) or value.__doc__


def test_the_lists_of_names_agree() -> None:
    tree = ast.parse(Path(microflow.__file__).read_text())
    for_type_checkers = {
        (alias.name, node.module)
        for block in tree.body
        if isinstance(block, ast.If)
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }

    assert sorted(microflow.__all__) == sorted(microflow._ROOMS) == dir(microflow)
    assert for_type_checkers == {(name, f"microflow.{room}") for name, room in microflow._ROOMS.items()}


def test_no_public_name_is_a_rooms_name() -> None:
    """Importing a room puts the module under its name into the package, over the name that was meant."""
    rooms = {path.stem for path in Path(microflow.__file__).parent.iterdir()}

    assert not rooms & set(microflow.__all__)


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'microflow' has no attribute 'Evnet'"):
        microflow.Evnet  # noqa: B018 - that is the point


def test_importing_microflow_costs_nothing() -> None:
    loaded = subprocess.run(
        [sys.executable, "-c", "import sys, microflow; print(*sys.modules)"],
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    ).stdout.split()

    assert "microflow" in loaded
    assert not {"pydantic", "asyncio", "aiokafka", "click", "fastavro", "opentelemetry", "sqlite3"} & set(loaded)


def test_what_an_author_writes_needs_no_driver_and_no_command_line() -> None:
    source = "import sys; from microflow import Event, Retry, Service, on, Reject, Context, Connection"
    loaded = subprocess.run(
        [sys.executable, "-c", f"{source}; print(*sys.modules)"],
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    ).stdout.split()

    assert not {"aiokafka", "click", "fastavro", "opentelemetry", "sqlite3", "asyncpg"} & set(loaded)
