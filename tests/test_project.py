"""The project's own rules: what `make check` forbids is really found, and what is handed to users is whole."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "microflow"
TOOLS = Path(sys.executable).parent
SETTINGS: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())

EDGES, RUNTIME, ADAPTERS, EMBEDDED, PORTS, CORE = (
    frozenset(re.findall(r"\w+", layer)) for layer in SETTINGS["tool"]["importlinter"]["contracts"][0]["layers"]
)

ASKS_THE_WORLD = """
import asyncio
import datetime as days
import os
import random
import secrets
import sqlite3
import time
import uuid
from asyncio import timeout, wait_for
from datetime import datetime
from uuid import uuid4

asyncio.sleep(1)
datetime.now()
days.datetime.utcnow()
os.environ["HOME"]
os.getenv("HOME")
uuid.uuid1()
""".strip()

ASKS_NOTHING = """
import asyncio
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid5

asyncio.Event()
datetime.fromtimestamp(0, tz=UTC) + timedelta(seconds=1)
uuid5(UUID(int=0), "name")
""".strip()


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of what the checks read, to be broken."""
    shutil.copytree(ROOT / "src", tmp_path / "src", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def run(tool: str, *arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(folder / "src"), "NO_COLOR": "1", "COLUMNS": "200"}
    return subprocess.run(
        [TOOLS / tool, *arguments], cwd=folder, env=environment, capture_output=True, text=True, timeout=60, check=False
    )


def broken_layers(folder: Path) -> str:
    """What import-linter says, where it finds anything."""
    check = run("lint-imports", "--no-cache", "--no-logo", folder=folder)
    return check.stdout if check.returncode == 1 else ""


def banned_lines(file: Path, *, folder: Path) -> set[int]:
    found = run(
        "ruff",
        "check",
        "--no-cache",
        "--select=TID251",
        "--output-format=json",
        "--exit-zero",
        str(file),
        folder=folder,
    )
    return {violation["location"]["row"] for violation in json.loads(found.stdout)}


def append(file: Path, line: str) -> None:
    file.write_text(f"{file.read_text()}\n{line}\n")


# ── layers ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("module", "imported"),
    [
        ("errors", "ports"),
        ("ports", "relay"),
        ("relay", "connect"),
        ("relay", "stores.sqlite"),
        ("relay", "embedded.database"),
        ("outbox", "stores.sqlite"),
        ("stores.sqlite", "transports.local"),
        ("transports.local", "relay"),
    ],
)
def test_an_import_against_the_layers_fails_the_check(copy: Path, module: str, imported: str) -> None:
    place = copy / "src" / "microflow" / module.replace(".", "/")
    append(place / "__init__.py" if place.is_dir() else place.with_suffix(".py"), f"import microflow.{imported}")

    assert re.search(rf"microflow\.{module} -> microflow\.{imported}\b", broken_layers(copy))


def test_a_module_in_no_layer_fails_the_check(copy: Path) -> None:
    (copy / "src" / "microflow" / "helpers.py").write_text('"""Things that found no room."""\n')

    assert "- microflow.helpers" in broken_layers(copy)


# ── time, randomness, ids, waiting, I/O ───────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("room", ["retries.py", "ports.py", "relay.py", "a_room_that_is_new.py"])
def test_core_ports_and_runtime_may_not_ask_the_world(copy: Path, room: str) -> None:
    file = copy / "src" / "microflow" / room
    file.write_text(ASKS_THE_WORLD)

    harmless = {
        "",
        "import asyncio",
        "import os",
        "import uuid",
        "import datetime as days",
        "from datetime import datetime",
    }
    lines = ASKS_THE_WORLD.splitlines()
    assert banned_lines(file, folder=copy) == {at for at, line in enumerate(lines, 1) if line not in harmless}


def test_values_that_only_carry_time_or_ids_stay_allowed(copy: Path) -> None:
    file = copy / "src" / "microflow" / "retries.py"
    file.write_text(ASKS_NOTHING)

    assert banned_lines(file, folder=copy) == set()


def test_every_module_of_core_ports_and_runtime_is_under_the_ban() -> None:
    free = {
        room
        for pattern in SETTINGS["tool"]["ruff"]["lint"]["per-file-ignores"]
        for room in re.findall(r"[\w]+", pattern.removeprefix("src/microflow/"))
    }

    assert not free & (CORE | PORTS | RUNTIME)


def calls_on_the_loops_clock(source: str) -> list[str]:
    """What the linter cannot see: waits that run on the event loop's own clock."""
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    return [
        ast.unparse(call)
        for call in calls
        if re.search(r"\.(call_later|call_at)$|loop(\(\))?\.time$", ast.unparse(call.func))
        or (ast.unparse(call.func) == "asyncio.wait" and any(keyword.arg == "timeout" for keyword in call.keywords))
    ]


@pytest.mark.parametrize(
    "call",
    [
        "asyncio.get_running_loop().time()",
        "asyncio.wait(tasks, timeout=1)",
        "loop.call_later(1, wake)",
        "self._loop.call_at(1, wake)",
    ],
)
def test_a_wait_on_the_loops_clock_is_recognised(call: str) -> None:
    assert calls_on_the_loops_clock(call) == [call]


def test_core_ports_and_runtime_wait_on_no_clock_of_the_loop() -> None:
    found = {
        str(file.relative_to(ROOT)): calls
        for room in sorted(CORE | PORTS | RUNTIME)
        for file in [PACKAGE / f"{room}.py", *(PACKAGE / room).rglob("*.py")]
        if file.exists() and (calls := calls_on_the_loops_clock(file.read_text()))
    }

    assert found == {}


def test_only_settings_and_the_command_look_at_the_environment() -> None:
    looking = {
        str(file.relative_to(PACKAGE))
        for file in PACKAGE.rglob("*.py")
        if re.search(r"\bos\.(environb?|getenv)\b|from os import .*(environ|getenv)", file.read_text())
        and file.parent != PACKAGE / "cli"
    }

    assert looking == {"settings.py"}


ASKS_THE_DATABASE = re.compile(r"\b(now|clock_timestamp)\s*\(|current_(time|date|timestamp)|'now'", re.IGNORECASE)
SAMPLES_ITS_CLOCK = re.compile(r"\s*select\s+\w+\([^;]*\)\s*", re.IGNORECASE)


def statements_that_take_the_time(script: str) -> list[str]:
    """Those in which the instant is no parameter, bar the one that only samples the database's clock."""
    statements = re.sub(r"--.*", "", script).split(";")
    return [sql for sql in statements if ASKS_THE_DATABASE.search(sql) and not SAMPLES_ITS_CLOCK.fullmatch(sql)]


@pytest.mark.parametrize(
    "sql",
    [
        "insert into inbox (at) values (now())",
        "select id from parked where due < strftime('%s', 'now')",
        "create table inbox (at text default current_timestamp)",
    ],
)
def test_sql_that_takes_the_time_itself_is_recognised(sql: str) -> None:
    assert statements_that_take_the_time(f"-- a comment\nselect 1; {sql};") == [f" {sql}"]


def test_the_statement_that_samples_the_databases_clock_is_allowed() -> None:
    assert statements_that_take_the_time("-- name: clock\nselect strftime('%Y-%m-%dT%H:%M:%f', 'now');") == []


def test_no_sql_of_ours_takes_the_time_itself() -> None:
    scripts = {str(file.relative_to(ROOT)): file.read_text() for file in PACKAGE.rglob("*.sql")}

    assert scripts
    assert {name: found for name, script in scripts.items() if (found := statements_that_take_the_time(script))} == {}


# ── what is handed to others ──────────────────────────────────────────────────────────────────────────────────────


def test_the_wheel_carries_all_that_a_user_needs(tmp_path: Path) -> None:
    run(
        "python", "-m", "hatchling", "build", "--target=wheel", f"--directory={tmp_path}", folder=ROOT
    ).check_returncode()

    [wheel] = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        scripts = archive.read(next(name for name in names if name.endswith("/entry_points.txt"))).decode()
    for file in PACKAGE.rglob("*"):
        if file.suffix in {".py", ".sql", ".typed"}:
            assert f"microflow/{file.relative_to(PACKAGE).as_posix()}" in names
    services = {"orders.py", "payments.py", "inventory.py", "shipping.py", "customers.py"}
    assert {f"microflow/examples/order_saga/{service}" for service in services} <= names
    assert not [name for name in names if "/tests/" in name or "__pycache__" in name]
    assert any(name.endswith("/licenses/LICENSE") for name in names)
    assert "microflow = microflow.cli:main" in scripts
    assert "microworkflow = microflow.cli:main" in scripts
    assert "microflow = microflow.pytest_plugin" in scripts


@pytest.mark.parametrize("lock", sorted((ROOT / "requirements").glob("*.txt")), ids=lambda lock: lock.stem)
def test_a_lock_pins_every_package_by_hash_and_names_no_index(lock: Path) -> None:
    text = lock.read_text()

    blocks = re.split(r"\n(?=\S)", text.strip())
    assert [
        block for block in blocks if not re.match(r"[\w.\[\]-]+==\S+", block) or "--hash=sha256:" not in block
    ] == []
    assert "://" not in text


def test_what_contributing_says_shows_a_promise_exists() -> None:
    table = (ROOT / "CONTRIBUTING.md").read_text().split("## Where every promise is shown")[1]
    named = set(re.findall(r"`((?:tests|examples|benchmarks)/[\w/.]*)`", table))

    assert named
    assert sorted(path for path in named if not (ROOT / path).exists()) == []
