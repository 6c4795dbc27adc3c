"""Rows of an outbox as verbs see them: whose outbox is meant, and what a row is without its bytes."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from microflow.cli.relaying import NAME
from microflow.cli.report_lines import instant_text
from microflow.cli.service_databases import services_meant
from microflow.connect import is_postgres, sqlite_path
from microflow.errors import SettingsError, TargetError
from microflow.ports import OutboxRow
from microflow.settings import Settings


@dataclass(frozen=True, slots=True)
class Glimpse:
    """A row without its value, which may be large: thousands of them are held at once."""

    position: int
    topic: str
    key: bytes | None
    type: str | None
    event: str | None
    flow: str | None
    size: int
    created_at: datetime

    @property
    def key_text(self) -> str:
        return "none" if self.key is None else self.key.decode(errors="replace")


def glimpse(row: OutboxRow) -> Glimpse:
    """What a row is. `size` is what counts against the log's limit."""
    texts = {name: value.decode(errors="replace") for name, value in row.headers if name.startswith("ce_")}
    headers = sum(len(name.encode("utf-8", "surrogatepass")) + len(value) for name, value in row.headers)
    return Glimpse(
        row.position,
        row.topic,
        row.key,
        texts.get("ce_type"),
        texts.get("ce_id"),
        texts.get("ce_correlationid"),
        len(row.key or b"") + len(row.value or b"") + headers,
        row.created_at,
    )


def row_fields(row: Glimpse) -> dict[str, Any]:
    """A row for `--json`."""
    return {
        "position": row.position,
        "topic": row.topic,
        "key": None if row.key is None else row.key_text,
        "type": row.type,
        "event": row.event,
        "flow": row.flow,
        "bytes": row.size,
        "created_at": instant_text(row.created_at),
    }


def meant(target: str | None, service: str | None, settings: Settings, *, verb: str) -> str:
    """The service whose outbox is meant, or whoever opens a database without one. Raises SettingsError, TargetError.

    Opening makes what is missing, and would say that nothing waits in a database that was misspelt.
    """
    if target is not None or service is not None:
        [name] = services_meant(target, service, database=settings.database, settings=settings)
        return name
    if settings.database is None:
        raise SettingsError(
            "Whose outbox?",
            why="Every service has a database of its own.",
            fix=f"microflow outbox {verb} --service NAME   or   microflow outbox {verb} --database URL",
        )
    if not is_postgres(settings.database) and not (path := sqlite_path(settings.database)).is_file():
        raise TargetError(f"There is no database {path}.", fix=f"microflow relay --database {settings.database}")
    return NAME
