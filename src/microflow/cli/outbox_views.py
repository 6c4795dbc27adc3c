"""An outbox on the screen: what waits for which topic, since when, and what keeps it."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from microflow.addresses import masked
from microflow.cli.console_lines import in_words
from microflow.cli.failures import FAILED
from microflow.cli.look import Look
from microflow.cli.outbox_rows import Glimpse, glimpse, meant, row_fields
from microflow.cli.paths import database_in_words
from microflow.cli.relaying import NAME
from microflow.cli.report_lines import json_line, milliseconds
from microflow.cli.screen import Screen
from microflow.cli.service_databases import opened
from microflow.clocks import SystemClock
from microflow.connect import LOCAL, connect_transport
from microflow.errors import TransportError
from microflow.ports import OutboxStatus, Store, Transport
from microflow.settings import Settings, read_settings

PAGE = 500
LOOKED_AT = 10_000
"""So many of the oldest rows are looked at: what keeps them stands at the front."""


@dataclass(slots=True)
class Waiting:
    """What waits for one topic."""

    topic: str
    oldest: datetime
    count: int = 0
    is_missing: bool = False
    too_large: list[Glimpse] = field(default_factory=list)
    behind: dict[int, int] = field(default_factory=dict)
    """How many rows of its key wait behind one that is too large."""


def show_status(target: str | None, *, service: str | None, database: str | None, kafka: str | None, look: Look) -> int:
    """Show what waits in an outbox; return the exit code. Raises TransportError after it if the log cannot be asked."""
    settings = read_settings({"database": database, "kafka": kafka})
    screen = Screen(look, log_format="console")
    name = meant(target, service, settings, verb="status")
    status, rows = asyncio.run(_read(name, settings))
    try:
        waiting, trouble = asyncio.run(_judged(rows, settings)), None
    except TransportError as error:  # which is the likeliest reason that anything waits
        waiting, trouble = _counted(rows), error
    now = SystemClock().now()
    if screen.json:
        fields = _fields(name, status, waiting, now=now)
        screen.line(json_line({**fields, "log_error": None if trouble is None else trouble.what}))
    else:
        _show(screen, _title(name, settings), status, waiting, _where(service or (target and name), database), now=now)
    if trouble is not None:
        raise trouble
    return FAILED if any(each.is_missing or each.too_large for each in waiting) else 0


# ── looking ───────────────────────────────────────────────────────────────────────────────────────────────────────


async def _read(name: str, settings: Settings) -> tuple[OutboxStatus, Sequence[Glimpse]]:
    async with opened(name, settings) as store:
        return await store.outbox.status(), await _oldest(store)


async def _oldest(store: Store) -> list[Glimpse]:
    rows: list[Glimpse] = []
    async with store.outbox.scan(page=PAGE) as pages:
        async for page in pages:
            rows += map(glimpse, page)
            if len(rows) >= LOOKED_AT:
                break
    return rows


def _counted(rows: Sequence[Glimpse]) -> list[Waiting]:
    """What waits for each topic, whatever keeps it; the longest waiting first."""
    by_topic: dict[str, Waiting] = {}
    for row in rows:
        waiting = by_topic.setdefault(row.topic, Waiting(row.topic, row.created_at))
        waiting.count += 1
        waiting.oldest = min(waiting.oldest, row.created_at)
    return sorted(by_topic.values(), key=lambda each: each.oldest)


async def _judged(rows: Sequence[Glimpse], settings: Settings) -> list[Waiting]:
    """As `_counted`, with what the log says of it."""
    counted = _counted(rows)
    if not counted:
        return counted
    transport = await connect_transport(settings, clock=SystemClock())
    try:
        topics = {each.topic for each in counted}
        # The embedded log makes a topic when its first record comes.
        existing = topics if settings.kafka.startswith(LOCAL) else await _existing(topics, transport)
        limits = {topic: transport.max_record_bytes(topic) for topic in existing}
    finally:
        await transport.close()
    for waiting in counted:
        waiting.is_missing = waiting.topic not in existing
        if not waiting.is_missing:
            _find_too_large(waiting, [row for row in rows if row.topic == waiting.topic], limits[waiting.topic])
    return counted


async def _existing(topics: Collection[str], transport: Transport) -> Collection[str]:
    existing = (await transport.topics.describe(topics)).keys()
    await transport.topics.ensure(existing)  # makes none of them, and learns their limits
    return existing


def _find_too_large(waiting: Waiting, rows: Sequence[Glimpse], limit: int) -> None:
    first: dict[bytes, int] = {}
    for row in rows:
        if row.size > limit:
            waiting.too_large.append(row)
            waiting.behind[row.position] = 0
            if row.key is not None:
                first.setdefault(row.key, row.position)
        elif row.key is not None and row.key in first:
            waiting.behind[first[row.key]] += 1


# ── on the screen ─────────────────────────────────────────────────────────────────────────────────────────────────


def _show(
    screen: Screen, title: str, status: OutboxStatus, waiting: Sequence[Waiting], where: str, *, now: datetime
) -> None:
    said = f"{status.pending:,} pending{_since(status.oldest, now)}" if status.pending else "nothing waits"
    screen.line(f"{title} · {said}")
    width = max((len(each.topic) for each in waiting), default=0)
    for each in waiting:
        screen.line(f"  {each.topic:<{width}}  {each.count:,}{_since(each.oldest, now)}")
        for line in _problems(each, where):
            screen.line(f"    {line}")
    if status.pending > sum(each.count for each in waiting) >= LOOKED_AT:
        screen.line(f"  of the {LOOKED_AT:,} oldest; the others were not looked at")


def _problems(waiting: Waiting, where: str) -> list[str]:
    lines = []
    if waiting.is_missing:
        lines += [f"✗ the log has no topic {waiting.topic}", "  fix: microflow topics apply"]
    for row in waiting.too_large:
        behind = behind_it(waiting.behind[row.position], "waits", "wait")
        lines += [
            f"✗ event {row.position} (key {row.key_text}) has {row.size:,} bytes, more than the topic takes. "
            f"{behind} behind it.",
            f"  fix: raise the topic's max.message.bytes, or give it up: microflow outbox skip {row.position}{where}",
        ]
    return lines


def behind_it(count: int, one: str, several: str) -> str:
    """How many events of a key wait, or are published, behind one of them."""
    if not count:
        return f"Nothing of its key {one}"
    return f"1 event of its key {one}" if count == 1 else f"{count:,} events of its key {several}"


def _title(name: str, settings: Settings) -> str:
    return database_in_words(settings.database_of(name)) if name == NAME else name


def _where(service: str | None, database: str | None) -> str:
    service_said = f" --service {service}" if service else ""
    return f"{service_said} --database {masked(database)}" if database else service_said


def _since(oldest: datetime | None, now: datetime) -> str:
    return "" if oldest is None else f" · oldest {in_words(now - oldest)}"


def _fields(name: str, status: OutboxStatus, waiting: Sequence[Waiting], *, now: datetime) -> Mapping[str, Any]:
    return {
        "service": None if name == NAME else name,
        "pending": status.pending,
        "oldest_ms": None if status.oldest is None else milliseconds(now - status.oldest),
        "topics": [
            {
                "topic": each.topic,
                "pending": each.count,
                "oldest_ms": milliseconds(now - each.oldest),
                "missing": each.is_missing,
                "too_large": [row_fields(row) | {"behind": each.behind[row.position]} for row in each.too_large],
            }
            for each in waiting
        ],
    }
