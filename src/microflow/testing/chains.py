"""Chains of events: which event caused which, so that one that goes round in a circle is noticed and named."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from microflow.errors import MicroflowError
from microflow.reports import Report

MOST_NAMES = 20


@dataclass(frozen=True, slots=True)
class Link:
    """One execution, and the one whose event it handled. `length` counts the chain that ends here."""

    report: Report
    before: Link | None
    length: int

    @property
    def handler(self) -> str:
        return f"{self.report.service}.{self.report.handler}"


class Chains:
    """Follows reports from now on. `longest` is how many executions in a row are believed to come to an end."""

    def __init__(self, reports: Sequence[Report], *, longest: int) -> None:
        self._reports = reports
        self._longest = longest
        self._read = len(reports)
        self._emitted_by: dict[str, Link] = {}

    def check(self) -> None:
        """Raise MicroflowError, with the handlers of the circle, if a chain is too long."""
        __tracebackhide__ = True
        for report in self._reports[self._read :]:
            if not report.emitted:
                continue
            before = self._emitted_by.get(report.event_id)
            link = Link(report, before, before.length + 1 if before else 1)
            if link.length > self._longest:
                raise _endless(link, self._longest)
            for emission in report.emitted:
                self._emitted_by[emission.id] = link
        self._read = len(self._reports)


def _endless(last: Link, longest: int) -> MicroflowError:
    circle = [last.handler]
    link = last.before
    while link is not None and link.handler != last.handler and len(circle) < MOST_NAMES:
        circle.append(link.handler)
        link = link.before
    return MicroflowError(
        f"Events go round in a circle: {' → '.join([last.handler, *reversed(circle)])}.",
        where=last.report.where,
        why=f"More than {longest:,} executions in a row, each caused by the one before, while no time passed.",
        fix="Let one of them return nothing at last, or allow so many: World(…, longest_chain=…).",
    )
