"""Examining: every probe at once, each for three seconds at most, and a line for whatever one of them found."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from microflow.causes import said_by
from microflow.cli.paths import shortened
from microflow.cli.probes.findings import Finding, Probe, problem, problem_of
from microflow.cli.report_lines import json_line
from microflow.cli.screen import Screen
from microflow.errors import MicroflowError

LONGEST = 3.0
SIGNS = {"ok": ("✔", "green"), "warning": ("!", "yellow"), "problem": ("✗", "red")}


@dataclass(frozen=True, slots=True)
class Examined:
    """A subject that is looked at. `name` is what is told if nothing else is: it takes too long, or it breaks."""

    name: str
    probe: Probe


async def examine(subjects: Sequence[Examined], screen: Screen) -> int:
    """Look at all subjects at once, and show what was found in their order; return the number of problems."""
    tasks = [asyncio.create_task(_look(each)) for each in subjects]
    counts: Counter[str] = Counter()
    for subject, task in zip(subjects, tasks, strict=True):
        for finding in await task:
            counts[finding.level] += 1
            _show(finding, subject.name, screen)
    _sum_up(counts, screen)
    return counts["problem"]


async def _look(subject: Examined) -> Sequence[Finding]:
    try:
        return await asyncio.wait_for(subject.probe(), LONGEST)
    except TimeoutError:
        return [problem(f"{subject.name} did not answer within {LONGEST:.0f} s")]
    except MicroflowError as error:
        return [problem_of(error)]
    except Exception as error:
        return [problem(f"{subject.name}: {said_by(error)}")]


def _show(finding: Finding, subject: str, screen: Screen) -> None:
    if screen.json:
        fields = {"level": finding.level, "subject": subject, "message": shortened(finding.text), "fix": finding.fix}
        screen.line(json_line(fields))
        return
    if screen.quiet and finding.level == "ok":
        return
    sign, colour = SIGNS[finding.level]
    screen.line(f" {screen.style(sign, fg=colour)} {shortened(finding.text)}")
    if finding.fix:
        for number, line in enumerate(shortened(finding.fix).splitlines()):
            screen.line(f"     {'fix: ' if number == 0 else '     '}{line.strip()}")


def _sum_up(counts: Counter[str], screen: Screen) -> None:
    problems, warnings = counts["problem"], counts["warning"]
    if screen.json:
        screen.line(json_line({"message": "examined", "problems": problems, "warnings": warnings}))
    elif problems or warnings:
        found = [
            f"{number} {word}{'s' if number != 1 else ''}"
            for number, word in ((problems, "problem"), (warnings, "warning"))
            if number
        ]
        screen.line(", ".join(found))
    elif not screen.quiet:
        screen.line("all is well")
