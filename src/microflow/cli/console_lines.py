"""A report as a line for a person: when, which flow, which handler, how long, and what became of it."""

from __future__ import annotations

import re
from datetime import datetime, timedelta

from microflow.cli.paths import shortened
from microflow.cli.screen import Screen
from microflow.dead_letters import describe
from microflow.frames import place_raised
from microflow.reports import Report

RARELY_WANTED = frozenset({"duplicate", "waiting", "dropped"})
LONGEST_FLOW = 12
LONGEST_ERROR = 120
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


def console_line(report: Report, *, at: datetime, screen: Screen, width: int, hint: bool = False) -> str | None:
    """The line of a report; None if it is shown with `-v` only. `width` is that of the longest handler's name; with
    `hint`, a dead letter's line is followed by what to type."""
    if report.outcome in RARELY_WANTED and not screen.verbose:
        return None
    time = screen.style(clock_time(at), dim=True)
    name = f"{report.service}.{report.handler or '?'}"
    see = f"\n{' ' * 13}see  microflow dead-letters list --service {report.service}" if hint else ""
    return f"{time} {_flow(report, verbose=screen.verbose)}  {name:<{width}}  {_ending(report, screen)}{see}"


def clock_time(at: datetime) -> str:
    """The time of day here, to the millisecond."""
    return at.astimezone().strftime("%H:%M:%S.%f")[:-3]


def in_words(span: timedelta) -> str:
    """A span of time as milliseconds, seconds or minutes, whichever reads best."""
    seconds = span.total_seconds()
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 120:
        return f"{seconds:.1f}".removesuffix(".0") + " s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def short_flow(flow: str, key: str | None) -> str:
    """A flow's id as far as it helps a person: one that nobody chose is told by the event's key."""
    text = key if key and _UUID.fullmatch(flow) else flow
    text = text[-8:] if _UUID.fullmatch(text) else text
    return text if len(text) <= LONGEST_FLOW else f"{text[: LONGEST_FLOW - 1]}…"


def cut(text: str, longest: int = LONGEST_ERROR) -> str:
    """A text as one line, its lines joined, and not longer than that."""
    line = " ".join(each.strip() for each in text.strip().splitlines())
    return line if len(line) <= longest else f"{line[: longest - 1].rstrip(' .:,;')}…"


def _flow(report: Report, *, verbose: bool) -> str:
    key = report.record.key.decode(errors="replace") if report.record.key is not None else None
    return f"{report.flow} {report.event_type}" if verbose else f"{short_flow(report.flow, key):<{LONGEST_FLOW}}"


def _ending(report: Report, screen: Screen) -> str:
    match report.outcome:
        case "done":
            return _done(report)
        case "retry":
            again = "soon" if report.retry_in is None else f"in {in_words(report.retry_in)}"
            return f"{_error(report, screen)} · try {report.attempt}/{report.attempts} · again {again}{_place(report)}"
        case "dead":
            tries = f"{report.attempt} {'try' if report.attempt == 1 else 'tries'}"
            return f"{_error(report, screen)} · dead letter after {tries}{_place(report)}"
        case "duplicate":
            return f"duplicate of {report.event_id}{' with other contents' if report.diverged else ''}"
        case "waiting":
            return "waits behind an earlier event of its key"
        case _:
            return "dropped: another process owns the partition now"


def _done(report: Report) -> str:
    emitted = " | ".join(_counted([each.type for each in report.emitted]))
    arrow = f"  → {emitted}" if emitted else ""
    attempt = f" (try {report.attempt})" if report.attempt > 1 else ""
    return f"{in_words(report.took):>7}{arrow}{attempt}"


def _counted(types: list[str]) -> list[str]:
    return [f"{types.count(each)} x {each}" if types.count(each) > 1 else each for each in dict.fromkeys(types)]


def _error(report: Report, screen: Screen) -> str:
    said = cut(shortened(describe(report.error))) if report.error is not None else "failed"
    return f"{screen.style('✗', fg='red')} {said}"


def _place(report: Report) -> str:
    place = (place_raised(report.error) if report.error is not None else None) or report.where
    return f" · {shortened(place)}" if place else ""
