"""`microflow new NAME`: a project that runs, with a service, its table and its test."""

from __future__ import annotations

import keyword
import re
import sys
from pathlib import Path

from microflow.errors import TargetError

SERVICE = '''\
"""{name}: greets whoever signs up."""

from microflow import Context, Event, Service, on


class SignedUp(Event, key="email"):  # what this service reads: only the fields it needs
    email: str
    name: str


class Greeted(Event, key="email", external=True):  # what it emits; nobody here listens, so it leaves the system
    email: str
    greeting: str


@on("SignedUp")
async def greet(person: SignedUp, context: Context) -> Greeted:
    """A sign-up is greeted once, however often its event is delivered; the row and the event are committed together."""
    greeting = f"Welcome, {{person.name}}!"
    context.write("insert into greetings (email, greeting) values ($1, $2)", person.email, greeting)
    return Greeted(email=person.email, greeting=greeting)


service = Service("{service}", tables="{module}.sql")
'''

TABLES = """\
create table greetings (
    email text not null,
    greeting text not null
);
"""

TEST = '''\
"""The service, tested with the real consumer, relay and database, in memory and in virtual time."""

from microflow.testing import Worlds

import {module}


async def test_a_sign_up_is_greeted_once(world: Worlds) -> None:
    here = await world({module})

    await here.emit({module}.SignedUp(email="ada@example.org", name="Ada"), id="a")
    await here.emit({module}.SignedUp(email="ada@example.org", name="Ada"), id="a")  # delivered twice
    await here.settle()

    assert [event.type for event in here.events()] == ["SignedUp", "SignedUp", "Greeted"]
    assert await here.connection("{service}").fetchval("select count(*) from greetings") == 1
'''

PROJECT = """\
[project]
name = "{service}"
version = "0.1.0"
requires-python = ">=3.11"
dependencies = ["microworkflow"]

[dependency-groups]
dev = ["microworkflow[dev]", "pytest"]

[tool.microflow]
# Where types live that do not say it themselves:
# topics = {{ SignedUp = "people" }}
"""

README = """\
# {name}

```console
$ microflow run {module}.py                                       # or: microflow dev {module}.py
$ microflow emit SignedUp email=ada@example.org name=Ada --key email   # in another terminal
$ python -m pytest
```
"""

IGNORED = """\
.microflow/
.venv/
__pycache__/
"""

_NAME = re.compile(r"[a-z][a-z0-9_-]{0,47}")


def create_project(name: str, parent: Path) -> tuple[list[Path], list[str]]:
    """Write a new project into `parent / name`; return its files and what to type next.

    Raises TargetError for a name that no service can have, and if the folder is there and not empty.
    """
    if not _NAME.fullmatch(name):
        raise TargetError(
            f"{name!r} is no name for a service.",
            why="A name is 1 to 48 of a-z, 0-9, '_' and '-', and begins with a letter.",
            fix="microflow new payments",
        )
    folder = parent / name
    try:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise TargetError(f"{folder} is there already.", fix="Choose another name, or an empty folder.")
        module = _module_name(name)
        words = {"name": name, "service": name, "module": module}
        contents = {
            f"{module}.py": SERVICE,
            f"{module}.sql": TABLES,
            f"test_{module}.py": TEST,
            "pyproject.toml": PROJECT,
            "README.md": README,
            ".gitignore": IGNORED,
        }
        folder.mkdir(parents=True, exist_ok=True)
        for file, text in contents.items():
            (folder / file).write_text(text if file.endswith(".sql") else text.format(**words), encoding="utf-8")
    except OSError as cause:
        raise TargetError(f"{folder} cannot be written: {cause.strerror or cause}.") from cause
    return [folder / file for file in contents], [f"cd {name}", f"microflow dev {module}.py"]


def _module_name(name: str) -> str:
    # A module called json would hide Python's own, and one called class cannot be imported.
    module = name.replace("-", "_")
    taken = sys.stdlib_module_names | {"test", "microflow", "pytest", "pydantic", "click", "conftest"}
    return f"{module}_service" if module in taken or keyword.iskeyword(module) else module
