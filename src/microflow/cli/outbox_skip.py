"""Giving an event of an outbox up: it is kept in a file with all its bytes first, and then published no more."""

from __future__ import annotations

import asyncio
import base64
import errno
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from microflow.cli.look import Look
from microflow.cli.outbox_rows import glimpse, meant, row_fields
from microflow.cli.outbox_views import LOOKED_AT, PAGE, behind_it
from microflow.cli.report_lines import instant_text, json_line
from microflow.cli.screen import Screen
from microflow.cli.service_databases import opened
from microflow.errors import SettingsError, TargetError
from microflow.ports import Outbox, OutboxRow
from microflow.settings import Settings, read_settings


def skip_row(
    position: int,
    target: str | None,
    *,
    service: str | None,
    database: str | None,
    save: Path,
    yes: bool,
    look: Look,
) -> int:
    """Give up a row, or with `yes=False` show which; return the exit code."""
    settings = read_settings({"database": database})
    screen = Screen(look, log_format="console")
    name = meant(target, service, settings, verb=f"skip {position}")
    row, behind = asyncio.run(_skip(name, settings, position, save if yes else None))
    seen = glimpse(row)
    if screen.json:
        screen.line(
            json_line({"skipped": yes, "saved": str(save) if yes else None, "behind": behind, **row_fields(seen)})
        )
        return 0
    screen.line(f"event {position} for {seen.topic}: {seen.type or '?'} {seen.event or ''}".rstrip())
    screen.line(f"  key {seen.key_text} · {seen.size:,} bytes · since {instant_text(seen.created_at)}")
    if yes:
        screen.line(
            f"Given up. All its bytes are in {save}. {behind_it(behind, 'is published', 'are published')} next."
        )
    else:
        screen.line(f"Nothing was done. {behind_it(behind, 'waits', 'wait')} behind it.")
        screen.line(f"Nobody who reads the topic would ever see it. To give it up, and keep it in {save}, add  --yes")
    return 0


async def _skip(name: str, settings: Settings, position: int, save: Path | None) -> tuple[OutboxRow, int]:
    async with opened(name, settings) as store:
        rows = await store.outbox.pending(after=position - 1, limit=1)
        if not rows or rows[0].position != position:
            raise TargetError(
                f"There is no event {position} in the outbox: it was published, given up, or never there.",
                fix="microflow outbox status",
            )
        behind = await _behind(store.outbox, rows[0])
        if save is not None:
            await asyncio.to_thread(_keep, rows[0], save)
            await store.outbox.delete([position])
        return rows[0], behind


async def _behind(outbox: Outbox, row: OutboxRow) -> int:
    count, seen, last = 0, 0, row.position
    while row.key is not None and seen < LOOKED_AT and (page := await outbox.pending(after=last, limit=PAGE)):
        count += sum((each.topic, each.key) == (row.topic, row.key) for each in page)
        seen, last = seen + len(page), page[-1].position
    return count


def _keep(row: OutboxRow, path: Path) -> None:
    """Append a row to a file, and return once it is on the disk: the next thing is that the row is deleted."""
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(f"{json_line(_all_bytes(row))}\n")
            file.flush()
            _sync(file.fileno())
    except OSError as error:
        raise SettingsError(
            f"Event {row.position} cannot be kept in {path}: {error.strerror or error}.",
            why="It stays in the outbox: what is given up is kept first.",
            fix="--save FILE",
        ) from error


def _sync(file: int) -> None:
    try:
        os.fsync(file)
    except OSError as error:
        if error.errno != errno.EINVAL:  # a pipe or /dev/null has no disk
            raise


def _all_bytes(row: OutboxRow) -> Mapping[str, Any]:
    def text(value: bytes | None) -> str | None:
        return None if value is None else base64.b64encode(value).decode()

    headers = [[name, text(value)] for name, value in row.headers]
    return row_fields(glimpse(row)) | {
        "key_base64": text(row.key),
        "value_base64": text(row.value),
        "headers_base64": headers,
    }
