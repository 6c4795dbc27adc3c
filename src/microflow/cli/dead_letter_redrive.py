"""Redriving: dead letters go back to the handler that failed, after it was shown which."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from microflow.cli.dead_letter_views import check_handler, letter_fields, read_letters, rows
from microflow.cli.failures import FAILED
from microflow.cli.look import Look
from microflow.cli.report_lines import json_line
from microflow.cli.screen import Screen
from microflow.cli.service_databases import opened, service_meant
from microflow.clocks import SystemClock
from microflow.errors import TargetError
from microflow.ports import DeadLetter
from microflow.settings import Settings, read_settings

AT_ONCE = 500
MOST_LINES = 20


def redrive_letters(
    identifiers: Sequence[int],
    target: str | None,
    service: str | None,
    *,
    database: str | None,
    all_letters: bool,
    handler: str | None,
    yes: bool,
    look: Look,
) -> int:
    """Redrive dead letters, or with `yes=False` show which would be; return the exit code."""
    settings = read_settings({"database": database})
    screen = Screen(look, log_format="console")
    name = service_meant(target, service, database=database, settings=settings)
    letters = asyncio.run(read_letters(name, settings))
    if handler is not None:
        check_handler(handler, letters, target, settings)
        letters = [letter for letter in letters if letter.claim.handler == handler]
    chosen = [letter for letter in letters if letter.state == "dead" and (all_letters or letter.id in identifiers)]
    if not all_letters:
        _check_known(identifiers, letters, name)
    if not chosen:
        screen.line(json_line({"redriven": []}) if screen.json else f"Nothing to redrive: {name} has nothing dead.")
        return 0
    if not yes:
        _show_plan(screen, name, chosen)
        return 0
    return _redrive(screen, name, settings, chosen)


def _check_known(identifiers: Sequence[int], letters: Sequence[DeadLetter], service: str) -> None:
    states = {letter.id: letter.state for letter in letters}
    for identifier in identifiers:
        if identifier not in states:
            raise TargetError(
                f"{service} has no dead letter {identifier}.",
                fix=f"microflow dead-letters list --service {service}",
            )
        if states[identifier] != "dead":
            said = "is being redriven already" if states[identifier] == "redriving" else "was redriven and is done"
            raise TargetError(
                f"Dead letter {identifier} of {service} {said}.",
                fix=f"microflow dead-letters list --done --service {service}",
            )


def _show_plan(screen: Screen, service: str, chosen: Sequence[DeadLetter]) -> None:
    if screen.json:
        for letter in chosen:
            screen.line(json_line({"would_redrive": True, **letter_fields(service, letter)}))
        return
    for line in rows(chosen[:MOST_LINES]):
        screen.line(line)
    if len(chosen) > MOST_LINES:
        screen.line(f"… and {len(chosen) - MOST_LINES} more")
    count = f"{len(chosen)} dead letter{'s' if len(chosen) > 1 else ''}"
    screen.line(f"{count} would go back to {service}. Nothing was done. To do it, add  --yes")


def _redrive(screen: Screen, service: str, settings: Settings, chosen: Sequence[DeadLetter]) -> int:
    redriven = asyncio.run(_park(service, settings, [letter.id for letter in chosen]))
    lost = sorted({letter.id for letter in chosen} - redriven)
    if screen.json:
        screen.line(json_line({"redriven": sorted(redriven), "not_redriven": lost}))
    else:
        count = f"{len(redriven)} dead letter{'s' if len(redriven) != 1 else ''}"
        screen.line(f"{count} went back to {service}: it begins at once, or when it is started.")
        if lost:
            screen.line(f"{len(lost)} had been redriven by somebody else meanwhile: {', '.join(map(str, lost))}")
    return FAILED if lost and not redriven else 0


async def _park(service: str, settings: Settings, identifiers: Sequence[int]) -> set[int]:
    redriven: set[int] = set()
    now = SystemClock().now()
    async with opened(service, settings) as store:
        for start in range(0, len(identifiers), AT_ONCE):
            redriven |= await store.dead_letters.redrive(identifiers[start : start + AT_ONCE], now=now)
    return redriven
