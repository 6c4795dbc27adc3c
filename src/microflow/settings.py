"""Settings: flag > environment > `microflow.toml` or `[tool.microflow]` > default. Read once, handed down.

This is the only file of the package that looks at the environment.
"""

from __future__ import annotations

import difflib
import logging
import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

from microflow.errors import SettingsError

logger = logging.getLogger("microflow.settings")

MEMORY = "memory:"
"""The address of a log, and of a database, that is gone with its process."""
KEYS = {
    "kafka": "MICROFLOW_KAFKA",
    "database": "MICROFLOW_DATABASE",
    "log_level": "MICROFLOW_LOG_LEVEL",
    "log_format": "MICROFLOW_LOG_FORMAT",
    "drain": "MICROFLOW_DRAIN",
    "concurrency": "MICROFLOW_CONCURRENCY",
    "fault": "MICROFLOW_FAULT",
}
TABLES = {"topics", "services"}
LOG_FORMATS = ("auto", "console", "json")
LOG_LEVELS = ("debug", "info", "warning", "error")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """`home` is where `.microflow/` lies; `kafka` is `host:port,…`, `local:PATH` or `memory:`; `databases` maps
    services to URLs and `database` is that of all others (None: a SQLite file each in `.microflow/`); `topics`
    records the topic of types that do not say it themselves; `drain` is the longest a stop may take."""

    home: Path
    kafka: str
    database: str | None = None
    databases: Mapping[str, str] = field(default_factory=dict)
    topics: Mapping[str, str] = field(default_factory=dict)
    log_level: str = "info"
    log_format: str = "auto"
    drain: timedelta = timedelta(seconds=25)
    concurrency: int = 100
    fault: str = ""

    @property
    def folder(self) -> Path:
        """Where embedded logs and databases lie unless a setting says otherwise."""
        return self.home / ".microflow"

    def database_of(self, service: str) -> str:
        """The URL of a service's database; without a setting it is in memory where the log is.

        Raises SettingsError for a file beside a log in memory, or the other way round: it would remember what it has
        handled of a log that is gone, or forget what it has handled of one that is not.
        """
        url = self.databases.get(service) or self.database
        if url is None:
            return MEMORY if self.kafka == MEMORY else f"sqlite:///{self.folder / f'{service}.db'}"
        if self.kafka == MEMORY and url != MEMORY:
            raise SettingsError(
                f"The log is in memory, and the database of {service} is not.",
                why="The log is gone with its process, and the database could never be used with another one.",
                fix="Leave the database out, so that it is in memory too, or keep the log:  --log local:PATH",
            )
        if url == MEMORY and self.kafka != MEMORY:
            raise SettingsError(
                f"The database of {service} is in memory, and the log is not.",
                why="When the service starts again, nobody would know what it has handled.",
                fix="Leave the database out, or say  --log memory:  for a try that leaves nothing behind.",
            )
        return url


def read_settings(
    flags: Mapping[str, str | None] | None = None,
    *,
    environment: Mapping[str, str] | None = None,
    folder: Path | None = None,
) -> Settings:
    """Settings as they are here and now. `flags` hold what was typed, by the names of `Settings`.

    Raises SettingsError for what cannot be read, with the place it was read from.
    """
    environment = os.environ if environment is None else environment
    folder = Path.cwd() if folder is None else folder
    home, where, table = _file_settings(folder)
    _check_names(table, where)
    _warn_of_unknown(environment)
    values = {key: (str(table[key]), f"{key} in {where}") for key in KEYS if key in table}
    values |= {key: (environment[name], name) for key, name in KEYS.items() if environment.get(name)}
    values |= {key: (value, f"--{key.replace('_', '-')}") for key, value in (flags or {}).items() if value is not None}
    databases = _file_databases(_table(table, "services", where), where) | _service_databases(environment)
    if (flags or {}).get("database") is not None:
        databases = {}  # what was typed goes before what is set for one service
    return Settings(
        home=home,
        kafka=values.get("kafka", (f"local:{home / '.microflow' / 'log.db'}", ""))[0],
        database=values["database"][0] if "database" in values else None,
        databases=databases,
        topics=_topics(_table(table, "topics", where), where),
        log_level=_one_of(values, "log_level", LOG_LEVELS, "info"),
        log_format=_one_of(values, "log_format", LOG_FORMATS, "auto"),
        drain=_duration(values, "drain", timedelta(seconds=25)),
        concurrency=_positive(values, "concurrency", 100),
        fault=values["fault"][0] if "fault" in values else "",
    )


_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h)?")
_UNITS = {"ms": 0.001, "s": 1.0, None: 1.0, "m": 60.0, "h": 3600.0}


def read_duration(text: str, *, where: str) -> timedelta:
    """`25s`, `500ms`, `2m`, `1h`, or a bare number of seconds. Raises SettingsError for anything else."""
    match = _DURATION.fullmatch(text.strip())
    if match is None:
        raise SettingsError(f"{where}: {text!r} is no span of time.", fix="For example 25s, 500ms or 2m.")
    return timedelta(seconds=float(match[1]) * _UNITS[match[2]])


Values = Mapping[str, tuple[str, str]]


def _one_of(values: Values, key: str, choices: tuple[str, ...], default: str) -> str:
    value, where = values.get(key, (default, ""))
    if value.lower() not in choices:
        raise SettingsError(f"{where}: {value!r} is none of {', '.join(choices)}.")
    return value.lower()


def _duration(values: Values, key: str, default: timedelta) -> timedelta:
    return read_duration(values[key][0], where=values[key][1]) if key in values else default


def _positive(values: Values, key: str, default: int) -> int:
    value, where = values.get(key, (str(default), ""))
    if not value.isdecimal() or int(value) < 1:
        raise SettingsError(f"{where}: {value!r} is no positive number.")
    return int(value)


def _topics(table: Mapping[str, Any], where: str) -> dict[str, str]:
    for event_type, topic in table.items():
        if not isinstance(topic, str):
            raise SettingsError(
                f"topics.{event_type} in {where} is {topic!r}, and a topic's name is text.",
                fix=f'{event_type} = "{event_type.lower()}s"',
            )
    return dict(table)


def _file_databases(services: Mapping[str, Any], where: str) -> dict[str, str]:
    databases = {}
    for service, table in services.items():
        if not isinstance(table, Mapping):
            raise SettingsError(
                f"services.{service} in {where} is no table.", fix=f'[services.{service}]\ndatabase = "sqlite:///PATH"'
            )
        for name in table:
            if name != "database":
                raise SettingsError(
                    f"services.{service} in {where} has an unknown setting: {name}.",
                    fix="Did you mean database?"
                    if difflib.get_close_matches(name, ["database"])
                    else "It takes database.",
                )
        if not isinstance(table.get("database", ""), str):
            raise SettingsError(
                f"services.{service}.database in {where} is {table['database']!r}, and a URL is text.",
                fix='database = "sqlite:///PATH"',
            )
        if "database" in table:
            databases[service] = table["database"]
    return databases


def _warn_of_unknown(environment: Mapping[str, str]) -> None:
    known = list(KEYS.values())
    for name in environment:
        if name.startswith("MICROFLOW_") and name not in known and not _OF_A_SERVICE.fullmatch(name):
            near = difflib.get_close_matches(name, known, n=1)
            meant = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}."
            logger.warning("the environment variable %s is not read: %s", name, meant)


_OF_A_SERVICE = re.compile(r"MICROFLOW_(.+)_DATABASE")


def _service_databases(environment: Mapping[str, str]) -> dict[str, str]:
    named = {
        match[1].lower(): url for name, url in environment.items() if (match := _OF_A_SERVICE.fullmatch(name)) and url
    }
    # A service called card-company is MICROFLOW_CARD_COMPANY_DATABASE: a shell's names have no hyphens.
    return named | {name.replace("_", "-"): url for name, url in named.items()}


def _file_settings(folder: Path) -> tuple[Path, str, Mapping[str, Any]]:
    """The project's home, the file its settings are in, and what that says."""
    for candidate in (folder, *folder.parents):
        for name in ("microflow.toml", "pyproject.toml"):
            path = candidate / name
            if path.is_file():
                content = _read_toml(path)
                table = content if name == "microflow.toml" else content.get("tool", {}).get("microflow", {})
                return candidate, str(path), table
    return folder, "", {}


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as cause:
        raise SettingsError(f"{path} cannot be read: {cause}.") from cause


def _check_names(table: Mapping[str, Any], where: str) -> None:
    known = [*KEYS, *TABLES]
    for name in table:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            fix = f"Did you mean {near[0]}?" if near else f"It takes {', '.join(known)}."
            raise SettingsError(f"{where} has an unknown setting: {name}.", fix=fix)


def _table(table: Mapping[str, Any], name: str, where: str) -> Mapping[str, Any]:
    value = table.get(name, {})
    if not isinstance(value, Mapping):
        raise SettingsError(f"{name} in {where} is no table.", fix=f"[tool.microflow.{name}]")
    return value
