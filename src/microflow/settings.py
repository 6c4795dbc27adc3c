"""Settings: flag > environment > `microflow.toml` or `[tool.microflow]` > default. Read once, handed down.

This is the only file of the package that looks at the environment. `SETTINGS`, `LIMIT_SETTINGS` and `TOPIC_SETTINGS`
are all there is to set, but for what has a name of its own: a service's database, a type's topic, a topic's partitions.
"""

from __future__ import annotations

import difflib
import logging
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

from microflow.addresses import MASK, masked
from microflow.errors import SettingsError
from microflow.limits import Limits
from microflow.project_files import ProjectFile, find_project_file
from microflow.setting_values import Reader, at_least, count, one_of, retention, span, text
from microflow.socket_addresses import SocketAddress, read_address

logger = logging.getLogger("microflow.settings")

MEMORY = "memory:"
"""The address of a log, and of a database, that is gone with its process."""

FOLDER = ".microflow"
LOG_FILE = "log.db"


@dataclass(frozen=True, slots=True)
class Setting:
    """One thing that can be set: its name in a file and here, how its value is read, its default, and what it means.

    As a variable it is `MICROFLOW_NAME`, as a flag `--name`.
    """

    name: str
    read: Reader
    default: Any
    meaning: str

    @property
    def variable(self) -> str:
        return f"MICROFLOW_{self.name.upper()}"

    @property
    def flag(self) -> str:
        return f"--{self.name.removeprefix('topic_').replace('_', '-')}"


SETTINGS = (
    Setting("kafka", text, None, "the log: host:port,…, local:PATH or memory:"),
    Setting("database", text, None, "the database of all services: postgresql://… or sqlite:///PATH"),
    Setting("log_level", one_of("debug", "info", "warning", "error"), "info", "from which level on is logged"),
    Setting("log_format", one_of("auto", "console", "json"), "auto", "lines for a person, or JSON"),
    Setting("wait", span, timedelta(seconds=30), "how long a start waits for a log or a database that is not up yet"),
    Setting("drain", span, timedelta(seconds=25), "the longest a stop may take"),
    Setting("concurrency", count, 100, "handlers that run at once"),
    Setting("lanes", count, 2, "transactions of a process at once, on PostgreSQL"),
    Setting("workers", count, 1, "processes of `microflow run`"),
    Setting("migrate", one_of("auto", "never"), "auto", "whether a start makes and changes tables"),
    Setting("health", read_address, None, "where /live and /ready are answered, for example :8081"),
    Setting("fault", text, "", "where a test makes the process fail"),
)
LIMITS = Limits()
LIMIT_SETTINGS = (
    Setting("batch", count, LIMITS.batch, "executions in one transaction, at most"),
    Setting("in_flight", count, LIMITS.in_flight, "records in hand at once: read, and not yet committed"),
    Setting("failing_keys", count, LIMITS.failing_keys, "keys in a row that a handler fails for before it rests"),
    Setting(
        "careful_for",
        at_least(timedelta(seconds=1), span, otherwise="An event that ends its process would end it for ever."),
        LIMITS.careful_for,
        "how long events are handled one at a time after a process has died, at most",
    ),
    Setting(
        "parked_per_handler", count, LIMITS.parked_per_handler, "events parked for a handler before it reads no more"
    ),
    Setting(
        "outbox_per_destination",
        count,
        LIMITS.outbox_per_destination,
        "events that wait in the outbox for a topic before those read no more who emit to it",
    ),
    Setting(
        "inbox_retention",
        at_least(timedelta(minutes=1), retention, otherwise="What arrives twice would be handled twice."),
        LIMITS.inbox_retention,
        "how long it is remembered that an event was handled, or forever",
    ),
    Setting(
        "dead_letter_retention",
        at_least(timedelta(minutes=1), retention, otherwise="Nobody could redrive what was given up."),
        LIMITS.dead_letter_retention,
        "how long a dead letter is kept, or forever",
    ),
)
"""The bounds of a running service that are tuned in production, by the names that `Limits` has for them."""
TOPIC_SETTINGS = (
    Setting("topic_partitions", count, 6, "partitions of a topic that is made"),
    Setting("topic_replication", count, None, "copies of each of its partitions; without it, what the log does"),
    Setting("topic_min_in_sync", count, None, "copies that have a record before it counts as written"),
    Setting("topic_retention", retention, None, "how long its records are kept, or forever"),
)
"""What `microflow topics` gives every topic, unless `[tool.microflow.topic.NAME]` says otherwise for one."""
ADDRESSES = ("kafka", "database")
TABLES = ("topics", "topic", "services")
KAFKA_CLIENT = "MICROFLOW_KAFKA_"
"""With this begin the variables that set up Kafka's clients, by the names that those have for it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TopicSettings:
    """What is said of how a topic is made; None is what nothing is said of."""

    partitions: int | None = None
    replication: int | None = None
    min_in_sync: int | None = None
    retention: timedelta | None = None

    def over(self, general: TopicSettings) -> TopicSettings:
        """These, and where they say nothing what is said in general."""
        said = {each.name: getattr(self, each.name) for each in fields(self)}
        return replace(general, **{name: value for name, value in said.items() if value is not None})


EVERY_TOPIC = TopicSettings(partitions=6)


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Settings:
    """`home` is where `.microflow/` lies; `kafka` is `host:port,…`, `local:PATH` or `memory:`, and `kafka_client` what
    its clients are told, each with its place; `databases` maps services to URLs and `database` is that of all others
    (None: a SQLite file each in `.microflow/`); `topics` records the topic of types that do not say it themselves;
    `given_as` says how addresses were given (`--database`, a variable), by `kafka`, `database` and `SERVICE database`;
    `topic` is how topics are made and `topic_of` how those are that differ; `wait` is how long a start waits for a log
    or a database that is not up yet, `drain` the longest a stop may take; `health` is where `/live` and `/ready` are
    answered; what follows `fault` are the bounds of a running service, as `Limits` has them."""

    home: Path
    kafka: str
    kafka_client: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    database: str | None = None
    databases: Mapping[str, str] = field(default_factory=dict)
    given_as: Mapping[str, str] = field(default_factory=dict)
    topics: Mapping[str, str] = field(default_factory=dict)
    topic: TopicSettings = EVERY_TOPIC
    topic_of: Mapping[str, TopicSettings] = field(default_factory=dict)
    log_level: str = "info"
    log_format: str = "auto"
    wait: timedelta = timedelta(seconds=30)
    drain: timedelta = timedelta(seconds=25)
    concurrency: int = 100
    lanes: int = 2
    workers: int = 1
    migrate: str = "auto"
    health: SocketAddress | None = None
    fault: str = ""
    batch: int = LIMITS.batch
    in_flight: int = LIMITS.in_flight
    failing_keys: int = LIMITS.failing_keys
    careful_for: timedelta = LIMITS.careful_for
    parked_per_handler: int = LIMITS.parked_per_handler
    outbox_per_destination: int = LIMITS.outbox_per_destination
    inbox_retention: timedelta = LIMITS.inbox_retention
    dead_letter_retention: timedelta = LIMITS.dead_letter_retention
    opentelemetry: Mapping[str, str] = field(default_factory=dict)
    """The variables that are OpenTelemetry's, by name."""

    def __repr__(self) -> str:
        # Printed by whoever debugs, and sent to whoever collects errors: no password is in it.
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        values["kafka_client"] = dict.fromkeys(self.kafka_client, MASK)
        values["opentelemetry"] = dict.fromkeys(self.opentelemetry, MASK)
        values["database"] = None if self.database is None else masked(self.database)
        values["databases"] = {service: masked(url) for service, url in self.databases.items()}
        return f"Settings({', '.join(f'{name}={value!r}' for name, value in values.items())})"

    @property
    def limits(self) -> Limits:
        """The bounds of a running service."""
        tuned = {each.name: getattr(self, each.name) for each in LIMIT_SETTINGS}
        return Limits(concurrency=self.concurrency, **tuned)

    @property
    def folder(self) -> Path:
        """Where embedded logs and databases lie unless a setting says otherwise."""
        return self.home / FOLDER

    @property
    def embedded_log(self) -> Path:
        """The file of the embedded log unless a setting says otherwise."""
        return self.folder / LOG_FILE

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

    def as_given(self, text: str, service: str | None = None) -> str:
        """A text of ours that calls the two addresses as they were given, where it names their usual variables."""
        kafka = self.given_as.get("kafka", "MICROFLOW_KAFKA")
        database = self.given_as.get(f"{service} database", self.given_as.get("database", "MICROFLOW_DATABASE"))
        return _DATABASE.sub(lambda _: database, _KAFKA.sub(lambda _: kafka, text))

    def made_as(self, topic: str) -> TopicSettings:
        """How a topic is to be made."""
        return self.topic_of[topic].over(self.topic) if topic in self.topic_of else self.topic


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
    typed = {name: value for name, value in (flags or {}).items() if value is not None}
    file = find_project_file(Path.cwd() if folder is None else folder)
    file, kafka_client = _kafka_client(environment, file)
    file.check_names([*(each.name for each in (*SETTINGS, *LIMIT_SETTINGS)), *TABLES])
    _warn_of_unknown(environment)
    values = {each.name: _value(each, typed, environment, file) for each in (*SETTINGS, *LIMIT_SETTINGS)}
    if values["kafka"] is None:
        values["kafka"] = f"local:{file.home / FOLDER / LOG_FILE}"
    in_file, in_environment = file.databases(), _service_databases(environment)
    databases = in_file | {service: url for service, (url, _) in in_environment.items()}
    given_as = {f"{service} database": f"services.{service}.database in {file.where}" for service in in_file}
    given_as |= {f"{service} database": variable for service, (_, variable) in in_environment.items()}
    if "database" in typed:
        databases, given_as = {}, {}  # what was typed goes before what is set for one service
    given_as |= _places(typed, environment, file)
    topic = _topic_settings(typed, environment, file)
    return Settings(
        home=file.home,
        kafka_client=kafka_client,
        databases=databases,
        given_as=given_as,
        opentelemetry={name: value for name, value in environment.items() if name.startswith("OTEL_")},
        topics=file.topics(),
        topic=topic[0],
        topic_of=topic[1],
        **values,
    )


def _value(setting: Setting, flags: Mapping[str, str], environment: Mapping[str, str], file: ProjectFile) -> Any:
    if setting.name in flags:
        return setting.read(flags[setting.name], setting.flag)
    if environment.get(setting.variable):
        return setting.read(environment[setting.variable], setting.variable)
    if setting.name in file.table:
        return setting.read(file.table[setting.name], f"{setting.name} in {file.where}")
    return setting.default


def _places(flags: Mapping[str, str], environment: Mapping[str, str], file: ProjectFile) -> dict[str, str]:
    """How the addresses for all services were given, those that were."""
    places = {}
    for each in SETTINGS:
        if each.name not in ADDRESSES:
            continue
        if each.name in flags:
            places[each.name] = each.flag
        elif environment.get(each.variable):
            places[each.name] = each.variable
        elif each.name in file.table:
            places[each.name] = f"{each.name} in {file.where}"
    return places


def _topic_settings(
    flags: Mapping[str, str], environment: Mapping[str, str], file: ProjectFile
) -> tuple[TopicSettings, dict[str, TopicSettings]]:
    """How every topic is made, and those that the file names."""
    readers = {each.name.removeprefix("topic_"): each for each in TOPIC_SETTINGS}
    general, named = file.topic_tables(tuple(readers))
    values = {name: each.default for name, each in readers.items()}
    values |= {name: readers[name].read(value, f"topic.{name} in {file.where}") for name, value in general.items()}
    for name, each in readers.items():
        if each.name in flags:
            values[name] = each.read(flags[each.name], each.flag)
        elif environment.get(each.variable):
            values[name] = each.read(environment[each.variable], each.variable)
    topic_of = {
        topic: TopicSettings(
            **{name: readers[name].read(value, f"topic.{topic}.{name} in {file.where}") for name, value in own.items()}
        )
        for topic, own in named.items()
    }
    return TopicSettings(**values), topic_of


def _kafka_client(environment: Mapping[str, str], file: ProjectFile) -> tuple[ProjectFile, dict[str, tuple[str, str]]]:
    """What Kafka's clients are told, by `MICROFLOW_KAFKA_…` and `[tool.microflow.kafka]`, and the file without it."""
    table, own = dict(file.table), file.table.get("kafka")
    given: dict[str, tuple[str, str]] = {}
    if isinstance(own, Mapping):
        del table["kafka"]
        for written, value in _flat(own):
            name, where = written.lower().replace(".", "_").replace("-", "_"), f"kafka.{written} in {file.where}"
            if name in ("servers", "bootstrap_servers"):
                table["kafka"] = value
            elif isinstance(value, str | int):
                given[name] = str(value), where
            else:
                raise SettingsError(f"{where} is neither a text nor a number.")
    for variable, value in environment.items():
        if variable.startswith(KAFKA_CLIENT) and value and not _OF_A_SERVICE.fullmatch(variable):
            given[variable.removeprefix(KAFKA_CLIENT).lower()] = value, variable
    return replace(file, table=table), given


def _flat(table: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The names and values of a table; `ssl.key.password = …` is three tables deep in TOML."""
    for name, value in table.items():
        if isinstance(value, Mapping):
            yield from ((f"{name}.{rest}", each) for rest, each in _flat(value))
        else:
            yield name, value


# ── the environment ───────────────────────────────────────────────────────────────────────────────────────────────

_KAFKA = re.compile(r"MICROFLOW_KAFKA\b(?: \(--log\))?")
# Not where a line to type names the flag, and behind it the variable.
_DATABASE = re.compile(r"(?<!  \()MICROFLOW_DATABASE\b(?: \(--database\))?")
_OF_A_SERVICE = re.compile(r"MICROFLOW_(.+)_DATABASE")
_OF_OUR_TESTS = ("MICROFLOW_TEST_", "MICROFLOW_SEEDS")


def _warn_of_unknown(environment: Mapping[str, str]) -> None:
    known = [each.variable for each in (*SETTINGS, *LIMIT_SETTINGS, *TOPIC_SETTINGS)]
    for name in environment:
        if not name.startswith("MICROFLOW_") or name in known or name.startswith((KAFKA_CLIENT, *_OF_OUR_TESTS)):
            continue
        if not _OF_A_SERVICE.fullmatch(name):
            near = difflib.get_close_matches(name, known, n=1)
            meant = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}."
            logger.warning("the environment variable %s is not read: %s", name, meant)


def _service_databases(environment: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    """The URLs of services, each with its variable."""
    named = {
        match[1].lower(): (url, name)
        for name, url in environment.items()
        if (match := _OF_A_SERVICE.fullmatch(name)) and url
    }
    # A service called card-company is MICROFLOW_CARD_COMPANY_DATABASE: a shell's names have no hyphens.
    return named | {name.replace("_", "-"): each for name, each in named.items()}
