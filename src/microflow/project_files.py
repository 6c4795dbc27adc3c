"""The project's file: `microflow.toml`, or `[tool.microflow]` of `pyproject.toml`, and what its tables may hold."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from microflow.errors import SettingsError


@dataclass(frozen=True, slots=True)
class ProjectFile:
    """What one says: `home` is its folder, `where` its path and `table` its content. Without a file all is empty."""

    home: Path
    where: str
    table: Mapping[str, Any]

    def check_names(self, known: Collection[str]) -> None:
        """Raise SettingsError for a name that is none of these."""
        for name in self.table:
            if name not in known:
                raise SettingsError(f"{self.where} has an unknown setting: {name}.", fix=_meant(name, known))

    def topics(self) -> dict[str, str]:
        """The topic of types that do not say it themselves."""
        table = self._table("topics")
        for event_type, topic in table.items():
            if not isinstance(topic, str):
                raise SettingsError(
                    f"topics.{event_type} in {self.where} is {topic!r}, and a topic's name is text.",
                    why=f"How a topic is made is said in [tool.microflow.topic.{event_type}]."
                    if isinstance(topic, Mapping)
                    else None,
                    fix=f'{event_type} = "{event_type.lower()}s"',
                )
        return dict(table)

    def topic_tables(self, known: Collection[str]) -> tuple[Mapping[str, Any], Mapping[str, Mapping[str, Any]]]:
        """How every topic is made, and how those are that have a table of their own."""
        table = self._table("topic")
        general = {name: value for name, value in table.items() if not isinstance(value, Mapping)}
        named = {name: value for name, value in table.items() if isinstance(value, Mapping)}
        for place, names in [("topic", general), *((f"topic.{topic}", own) for topic, own in named.items())]:
            for name in names:
                if name not in known:
                    raise SettingsError(
                        f"{place} in {self.where} has an unknown setting: {name}.", fix=_meant(name, known)
                    )
        return general, named

    def databases(self) -> dict[str, str]:
        """The databases of services that have one of their own."""
        databases = {}
        for service, table in self._table("services").items():
            if not isinstance(table, Mapping):
                raise SettingsError(
                    f"services.{service} in {self.where} is no table.",
                    fix=f'[services.{service}]\ndatabase = "sqlite:///PATH"',
                )
            for name in table:
                if name != "database":
                    raise SettingsError(
                        f"services.{service} in {self.where} has an unknown setting: {name}.",
                        fix=_meant(name, ["database"]),
                    )
            if not isinstance(table.get("database", ""), str):
                raise SettingsError(
                    f"services.{service}.database in {self.where} is {table['database']!r}, and a URL is text.",
                    fix='database = "sqlite:///PATH"',
                )
            if "database" in table:
                databases[service] = table["database"]
        return databases

    def _table(self, name: str) -> Mapping[str, Any]:
        value = self.table.get(name, {})
        if not isinstance(value, Mapping):
            raise SettingsError(f"{name} in {self.where} is no table.", fix=f"[tool.microflow.{name}]")
        return value


def find_project_file(folder: Path) -> ProjectFile:
    """The nearest one, in this folder or above. Raises SettingsError for one that cannot be read."""
    for candidate in (folder, *folder.parents):
        for name in ("microflow.toml", "pyproject.toml"):
            path = candidate / name
            if path.is_file():
                content = _read_toml(path)
                table = content if name == "microflow.toml" else content.get("tool", {}).get("microflow", {})
                return ProjectFile(candidate, str(path), table)
    return ProjectFile(folder, "", {})


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as cause:
        raise SettingsError(f"{path} cannot be read: {cause}.") from cause


def _meant(name: str, known: Collection[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f"Did you mean {near[0]}?" if near else f"It takes {', '.join(known)}."
