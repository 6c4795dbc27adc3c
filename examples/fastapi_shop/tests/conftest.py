"""`place`: where the example keeps its log and its databases, as an environment for its processes."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest


@dataclass(frozen=True)
class Place:
    """`environment` names the log, and `database` is the URL of the shop's own."""

    database: str
    environment: Mapping[str, str]


@pytest.fixture(params=["sqlite", "postgresql"])
def place(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    """A fresh one on each database. The environment of the tests themselves is set to it, too."""
    url = f"sqlite:///{tmp_path / 'shop.db'}"
    if request.param == "postgresql":
        url = request.getfixturevalue("postgres_url")
    environment = {"MICROFLOW_KAFKA": f"local:{tmp_path / 'log.db'}", "MICROFLOW_DATABASE": url}
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    return Place(url, environment)
