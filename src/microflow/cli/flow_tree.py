"""The live tree of flows: each execution as a line below the one that emitted its event."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

MOST_FLOWS = 10_000

Paint = Callable[[str, str], str]
"""Paints a text in a colour (`red`, `green`, `yellow`, `cyan`, `bright_black`), or leaves it as it is."""


@dataclass(slots=True)
class _Flow:
    depths: dict[str, int] = field(default_factory=dict)
    began: datetime | None = None
    events: set[str] = field(default_factory=set)
    retries: int = 0
    dead_letters: int = 0


class FlowTree:
    """Turns reports, as they come, into lines. Remembers the last ten thousand flows.

    `ends` are the types of events that end a flow.
    """

    def __init__(self, *, ends: Collection[str] = (), paint: Paint = lambda text, colour: text) -> None:
        self._flows: OrderedDict[str, _Flow] = OrderedDict()
        self._ends = frozenset(ends)
        self._paint = paint

    def lines(self, report: Mapping[str, Any]) -> list[str]:
        """The lines that a report adds; none for duplicates and for events that wait behind others."""
        flow = self._flow(report["flow"])
        at = datetime.fromisoformat(report["at"])
        lines = []
        if report["event"] not in flow.depths and report["cause"] not in flow.depths:
            flow.depths[report["event"]] = 0
            flow.began = flow.began or at
            flow.events.add(report["event"])
            root = f"● {report['type']}"
            lines.append(self._line(at, report["flow"], root))
        depth = flow.depths.setdefault(report["event"], flow.depths.get(report["cause"], 0) + 1) + 1
        match report["outcome"]:
            case "done":
                for emitted in report["emitted"]:
                    flow.depths[emitted["id"]] = depth
                    flow.events.add(emitted["id"])
                lines.append(self._line(at, report["flow"], self._done(report, depth)))
                lines.extend(self._end(flow, report, at, emitted["type"]) for emitted in self._endings(report))
            case "retry":
                flow.retries += 1
                lines.append(self._line(at, report["flow"], self._retry(report, depth)))
            case "dead":
                flow.dead_letters += 1
                lines.append(self._line(at, report["flow"], self._dead(report, depth)))
        return lines

    def _flow(self, name: str) -> _Flow:
        flow = self._flows.setdefault(name, _Flow())
        self._flows.move_to_end(name)
        if len(self._flows) > MOST_FLOWS:
            self._flows.popitem(last=False)
        return flow

    def _line(self, at: datetime, flow: str, text: str) -> str:
        clock = at.astimezone().strftime("%H:%M:%S.") + f"{at.microsecond // 1000:03}"
        return f"{self._paint(clock, 'bright_black')} {short(flow):<10}  {text}"

    def _done(self, report: Mapping[str, Any], depth: int) -> str:
        counts = Counter(each["type"] for each in report["emitted"])
        emitted = " + ".join(name if number == 1 else f"{number} × {name}" for name, number in counts.items())
        arrow = f"  → {self._paint(emitted, 'cyan')}" if emitted else ""
        again = f"  (try {report['attempt']})" if report["attempt"] > 1 else ""
        return f"{_branch(depth)}{_who(report)}  {span(report['took_ms'])}{arrow}{again}"

    def _retry(self, report: Mapping[str, Any], depth: int) -> str:
        why = f"✗ {_one_line(report['error'])}"
        tries = f"try {report['attempt']}/{report['attempts']} · again in {span(report['retry_in_ms'])}"
        return f"{_branch(depth)}{_who(report)}  {self._paint(why, 'yellow')} · {tries}"

    def _dead(self, report: Mapping[str, Any], depth: int) -> str:
        why = f"✗ {_one_line(report['error'])}"
        where = f" · {report['where']}" if report["where"] else ""
        return f"{_branch(depth)}{_who(report)}  {self._paint(why, 'red')} · dead letter{where}"

    def _endings(self, report: Mapping[str, Any]) -> list[Mapping[str, Any]]:
        return [each for each in report["emitted"] if each["type"] in self._ends]

    def _end(self, flow: _Flow, report: Mapping[str, Any], at: datetime, ending: str) -> str:
        took = span((at - flow.began).total_seconds() * 1000) if flow.began else ""
        counts = f"{len(flow.events)} events"
        if flow.retries:
            counts += f" · {flow.retries} {'retry' if flow.retries == 1 else 'retries'}"
        if flow.dead_letters:
            counts += f" · {flow.dead_letters} dead letters"
        return self._line(at, report["flow"], f"{self._paint('✔ ' + ending, 'green')} in {took}   {counts}")


def short(flow: str) -> str:
    """A flow's id as a person can tell it from others: a UUID by its random end, what people named as it is."""
    is_uuid = len(flow) == 36 and flow.count("-") == 4
    return flow[-8:] if is_uuid else flow


def span(milliseconds: float) -> str:
    """A span of time in ms or s."""
    return f"{milliseconds:.0f} ms" if milliseconds < 1000 else f"{milliseconds / 1000:.1f} s"


def _branch(depth: int) -> str:
    return "│  " * (depth - 1) + "├─ "


def _who(report: Mapping[str, Any]) -> str:
    return f"{report['service']}.{report['handler'] or '(unreadable)'}"


def _one_line(error: str | None) -> str:
    first = (error or "").split("\n", 1)[0]
    return first if len(first) <= 90 else first[:89] + "…"
