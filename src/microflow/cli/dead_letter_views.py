"""Dead letters on the screen: as a list, in groups, and one with everything that is known of it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from microflow.addresses import masked
from microflow.cli.console_lines import LONGEST_ERROR, cut
from microflow.cli.look import Look
from microflow.cli.paths import shortened
from microflow.cli.report_lines import instant_text, json_line
from microflow.cli.screen import Screen
from microflow.cli.service_databases import opened, services_meant
from microflow.cli.typed_targets import load_typed
from microflow.errors import TargetError, nearest
from microflow.ports import DeadLetter
from microflow.service import build
from microflow.settings import Settings, read_settings

PAGE = 500
MOST_LINES = 20
LONGEST_VALUE = 4000


def list_all(
    target: str | None,
    service: str | None,
    *,
    database: str | None,
    handler: str | None,
    each: bool,
    done: bool,
    look: Look,
) -> int:
    """Show the dead letters of services; return the exit code."""
    settings = read_settings({"database": database})
    screen = Screen(look, log_format="console")
    names = services_meant(target, service, database=database, settings=settings)
    found = {name: asyncio.run(read_letters(name, settings)) for name in names}
    if handler is not None:
        check_handler(handler, [letter for letters in found.values() for letter in letters], target, settings)
        found = {name: [each for each in letters if each.claim.handler == handler] for name, letters in found.items()}
    for name, letters in found.items():
        shown = [letter for letter in letters if done or letter.state != "done"]
        if screen.json:
            for letter in shown:
                screen.line(json_line(letter_fields(name, letter)))
        elif shown:
            named = name if target or settings.database else service  # a database on a server may be that of several
            _show_service(screen, name, shown, each=each, several=len(names) > 1, said=_said(named, database))
    if not screen.json and not any(found.values()):
        screen.line(f"No dead letters in {', '.join(names)}.")
    return 0


def check_handler(handler: str, letters: Sequence[DeadLetter], target: str | None, settings: Settings) -> None:
    """Raise TargetError if nothing is known of a handler: no dead letter has its name, nor has the target."""
    known = {letter.claim.handler for letter in letters if letter.claim.handler}
    if target is not None:
        known |= {each.name for each in build(load_typed(target).service, topics=settings.topics).handlers}
    if handler in known:
        return
    near = nearest(handler, known)
    raise TargetError(
        f"There is no handler {handler} with dead letters here.",
        why=f"Those with dead letters: {', '.join(sorted(known))}." if known else "There are no dead letters at all.",
        fix=f"Did you mean --handler {near}?" if near else "microflow dead-letters list",
    )


async def read_letters(service: str, settings: Settings) -> list[DeadLetter]:
    """All dead letters of a service."""
    letters: list[DeadLetter] = []
    async with opened(service, settings) as store:
        while page := await store.dead_letters.list(limit=PAGE, after=letters[-1].id if letters else 0):
            letters += page
            if len(page) < PAGE:
                break
    return letters


def show_one(identifier: int, target: str | None, service: str | None, *, database: str | None, look: Look) -> int:
    """Show one dead letter with all that is known of it; return the exit code."""
    settings = read_settings({"database": database})
    screen = Screen(look, log_format="console")
    names = services_meant(target, service, database=database, settings=settings)
    found = [(name, letter) for name in names if (letter := asyncio.run(_get(name, settings, identifier))) is not None]
    if not found:
        raise TargetError(
            f"{' and '.join(names)} {'has' if len(names) == 1 else 'have'} no dead letter {identifier}.",
            fix="microflow dead-letters list",
        )
    if len(found) > 1:
        raise TargetError(
            f"{' and '.join(name for name, _ in found)} have a dead letter {identifier} each.",
            fix=f"microflow dead-letters show {identifier} --service {found[0][0]}",
        )
    [(name, letter)] = found
    if screen.json:
        screen.line(json_line(letter_fields(name, letter) | _details(letter)))
        return 0
    for line in _letter_in_full(screen, name, letter, said=_said(name, database)):
        screen.line(line)
    return 0


async def _get(service: str, settings: Settings, identifier: int) -> DeadLetter | None:
    async with opened(service, settings) as store:
        return await store.dead_letters.get(identifier)


# ── as JSON ───────────────────────────────────────────────────────────────────────────────────────────────────────


def letter_fields(service: str, letter: DeadLetter) -> dict[str, Any]:
    """What a list says of a dead letter, as values that JSON has."""
    record = letter.record
    return {
        "id": letter.id,
        "service": service,
        "handler": letter.claim.handler,
        "type": header(letter, "ce_type"),
        "event": header(letter, "ce_id"),
        "flow": header(letter, "ce_correlationid"),
        "key": None if record.key is None else record.key.decode(errors="replace"),
        "topic": record.topic,
        "partition": record.partition,
        "offset": record.offset,
        "state": letter.state,
        "reason": letter.reason,
        "error": letter.error,
        "attempts": letter.attempts,
        "first_failed_at": instant_text(letter.first_failed_at),
        "failed_at": instant_text(letter.failed_at),
    }


def _details(letter: DeadLetter) -> dict[str, Any]:
    value = letter.record.value
    return {
        "headers": {name: content.decode(errors="backslashreplace") for name, content in letter.record.headers},
        "value": None if value is None else value.decode(errors="backslashreplace"),
        "trace": letter.trace,
    }


def header(letter: DeadLetter, name: str) -> str | None:
    """A header as text, None if the record does not have it."""
    for each, content in letter.record.headers:
        if each.lower() == name:
            return content.decode(errors="replace")
    return None


# ── for a person ──────────────────────────────────────────────────────────────────────────────────────────────────


def _said(service: str | None, database: str | None) -> str:
    """The options that lead to the same database again."""
    return "".join([f" --service {service}" if service else "", f" --database {masked(database)}" if database else ""])


def _show_service(
    screen: Screen, service: str, letters: Sequence[DeadLetter], *, each: bool, several: bool, said: str
) -> None:
    if several:
        screen.line(screen.style(service, bold=True))
    if len(letters) > MOST_LINES and not each:
        for line in _groups(service, letters):
            screen.line(line)
        screen.line(f"{len(letters)} dead letters. Each:  microflow dead-letters list --service {service} --each")
    else:
        for line in rows(letters):
            screen.line(line)
    said = said or (f" --service {service}" if several else "")
    first = next((letter.id for letter in letters if letter.state == "dead"), letters[0].id)
    screen.line(f"See one:  microflow dead-letters show {first}{said}   give it back:  … redrive {first}{said} --yes")


def rows(letters: Sequence[DeadLetter]) -> list[str]:
    """A line for each dead letter, in columns."""
    table = [
        [
            str(letter.id),
            letter.claim.handler or "(none)",
            header(letter, "ce_type") or "(no type)",
            cut((letter.record.key or b"").decode(errors="replace"), 24),
            f"{letter.attempts} {'try' if letter.attempts == 1 else 'tries'}",
            local_time(letter.failed_at),
            cut(shortened(letter.error), LONGEST_ERROR) + ("" if letter.state == "dead" else f"  ({letter.state})"),
        ]
        for letter in letters
    ]
    widths = [max(len(row[column]) for row in table) for column in range(len(table[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in table]


def _groups(service: str, letters: Sequence[DeadLetter]) -> list[str]:
    groups: dict[tuple[str, str, str], list[DeadLetter]] = {}
    for letter in letters:
        name = (letter.error.partition(":")[0], letter.claim.handler, header(letter, "ce_type") or "(no type)")
        groups.setdefault(name, []).append(letter)
    lines = []
    for (error, handler, event_type), each in sorted(groups.items(), key=lambda group: -len(group[1])):
        first, last = min(letter.first_failed_at for letter in each), max(letter.failed_at for letter in each)
        times = f"first {local_time(first)}, last {local_time(last)}"
        lines.append(f"{len(each):>6} x {error} in {service}.{handler or '(none)'} of {event_type}, {times}")
    return lines


def local_time(instant: datetime) -> str:
    """An instant as a person here reads it."""
    return instant.astimezone().strftime("%Y-%m-%d %H:%M:%S")


def _letter_in_full(screen: Screen, service: str, letter: DeadLetter, *, said: str) -> list[str]:
    record = letter.record
    title = f"dead letter {letter.id} · {service}.{letter.claim.handler or '(no handler)'} · {letter.state}"
    key = "none" if record.key is None else record.key.decode(errors="backslashreplace")
    tries = f"{letter.attempts} {'try' if letter.attempts == 1 else 'tries'}"
    when = f"first {local_time(letter.first_failed_at)}, last {local_time(letter.failed_at)}"
    lines = [
        screen.style(title, bold=True),
        f"record   {record.topic}[{record.partition}]@{record.offset}   key {key}",
        f"tries    {tries} ({letter.reason}), {when}",
        "headers",
        *(f"  {name}: {content.decode(errors='backslashreplace')}" for name, content in record.headers),
        "value",
        *(f"  {line}" for line in _value_in_words(record.value, whole=screen.verbose)),
        "error",
        *(f"  {line}" for line in f"{screen.style('✗', fg='red')} {shortened(letter.error)}".splitlines()),
        *(f"  {line}" for line in shortened(letter.trace).splitlines()),
    ]
    if letter.state == "dead":
        lines.append(f"When it can work:  microflow dead-letters redrive {letter.id}{said} --yes")
    return lines


def _value_in_words(value: bytes | None, *, whole: bool) -> list[str]:
    if value is None:
        return ["(null)"]
    try:
        text = json.dumps(json.loads(value), indent=2, ensure_ascii=False)
    except (ValueError, RecursionError):
        text = value.decode(errors="backslashreplace")
    if len(text) > LONGEST_VALUE and not whole:
        text = f"{text[:LONGEST_VALUE]}\n… {len(value):,} bytes in all; -v shows them"
    return text.splitlines() or ["(empty)"]
