"""Laying out topics: the plan is made against the real log, shown, and carried out."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TypeVar

from microflow.cli.failures import FAILED
from microflow.cli.look import Look
from microflow.cli.paths import log_in_words
from microflow.cli.report_lines import json_line
from microflow.cli.screen import Screen
from microflow.cli.serving import load, set_up
from microflow.cli.topic_plan import Step, making_alike, needs_of, plan
from microflow.clocks import SystemClock
from microflow.errors import SettingsError, TransportError, nearest
from microflow.ports import FOREVER, Administration, TopicLayout, Transport
from microflow.reaching import Reaching
from microflow.setting_values import count
from microflow.settings import MEMORY, Settings, TopicSettings, read_settings

SIGNS = {"create": "+", "change": "~", "keep": " ", "refuse": "!"}
COLOURS = {"create": "green", "change": "yellow", "keep": None, "refuse": "red"}

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Wishes:
    """What was typed: the services, the log, and how topics are to be."""

    targets: tuple[str, ...]
    kafka: str | None
    partitions: tuple[str, ...]
    replication: str | None
    min_in_sync: str | None
    retention: str | None
    wait: str | None

    def settings(self, look: Look) -> tuple[Settings, dict[str, int]]:
        """The settings that these add up to, and the partitions that were asked for by a topic's name."""
        general = [each for each in self.partitions if "=" not in each]
        named = {
            topic: count(number, f"--partitions {topic}")
            for topic, _, number in (each.partition("=") for each in self.partitions if "=" in each)
        }
        flags = {
            "kafka": self.kafka,
            "wait": self.wait,
            "log_level": look.log_level,
            "topic_partitions": general[-1] if general else None,
            "topic_replication": self.replication,
            "topic_min_in_sync": self.min_in_sync,
            "topic_retention": self.retention,
        }
        settings = read_settings(flags)
        if settings.kafka == MEMORY:
            raise SettingsError("A log in memory is gone with its process.", fix="--log local:PATH, or Kafka's address")
        topic_of = dict(settings.topic_of)
        for topic, number in named.items():
            topic_of[topic] = replace(topic_of.get(topic, TopicSettings()), partitions=number)
        return replace(settings, topic_of=topic_of), named


def show_plan(wishes: Wishes, *, check: bool, look: Look) -> int:
    """Show what is to be done; return the exit code: with `check` 1 if something is."""
    laying = Laying(wishes, look)
    steps = laying.run(laying.plan)
    laying.show(steps)
    open_steps = [step for step in steps if step.action in ("create", "change")]
    laying.sum_up(steps)
    return FAILED if check and open_steps else 0


def apply_plan(wishes: Wishes, *, yes: bool, look: Look) -> int:
    """Do what is to be done, what is drastic only with `yes`; return the exit code: 1 if something is left."""
    laying = Laying(wishes, look)
    return laying.run(lambda transport: laying.apply(transport, yes=yes))


class Laying:
    """One look at the topics of services, shown on a screen."""

    def __init__(self, wishes: Wishes, look: Look) -> None:
        self._wishes = wishes
        self._settings, named = wishes.settings(look)
        self._screen = Screen(look, log_format="console")
        set_up(self._screen, self._settings)
        self._needs = needs_of(served.definition for served in load(wishes.targets, self._settings))
        self._check_names(named)

    def run(self, work: Callable[[Transport], Awaitable[T]]) -> T:
        """Do something with the log, once it has answered."""

        async def with_log() -> T:
            transport = await Reaching(self._settings, clock=SystemClock()).log()
            try:
                return await work(transport)
            finally:
                await transport.close()

        return asyncio.run(with_log())

    async def plan(self, transport: Transport) -> list[Step]:
        """What is to be done now."""
        existing = await transport.administration.layouts(self._needs.keys())
        all_topics = await transport.topics.describe()
        return plan(self._needs, existing, all_topics=all_topics.keys(), settings=self._settings)

    async def apply(self, transport: Transport, *, yes: bool) -> int:
        """Do it, and say what was done; return the exit code."""
        steps = await self.plan(transport)
        left = 0
        for step in steps:
            if step.action in ("create", "change") and (yes or not step.drastic):
                await self._carry_out(transport.administration, step)
            elif step.action != "keep":
                left += 1
                self._show(step)
            elif step.notes:
                self._show(step)
        self._sum_up_applied(steps, left, yes=yes)
        return FAILED if left else 0

    async def _carry_out(self, administration: Administration, step: Step) -> None:
        topic, after = step.topic, step.after
        try:
            if step.before is None:
                await administration.create({topic: after})
            else:
                if step.grows:
                    await administration.grow({topic: after.partitions})
                if replace(step.before, partitions=after.partitions) != after:
                    await administration.alter({topic: _changes(step.before, after)})
        except TransportError as error:
            raise type(error)(f"{topic}: {error.what}", why=error.why, fix=error.fix) from error
        self._show(step, done=True)

    def _check_names(self, named: dict[str, int]) -> None:
        for topic in named:
            if topic not in self._needs:
                near = nearest(topic, self._needs)
                raise SettingsError(
                    f"--partitions {topic}={named[topic]}: none of these services has to do with {topic}.",
                    why=f"Their topics are {', '.join(self._needs)}.",
                    fix=f"Did you mean {near}?" if near else None,
                )

    # ── what is shown ─────────────────────────────────────────────────────────────────────────────────────────────

    def show(self, steps: Sequence[Step]) -> None:
        """Show every step."""
        if not self._screen.json and not self._screen.quiet:
            self._screen.line(f"topics on {log_in_words(self._settings.kafka)}")
        for step in steps:
            self._show(step)

    def sum_up(self, steps: Sequence[Step]) -> None:
        """Say how much is to be done, and what does it."""
        counts = {action: sum(step.action == action for step in steps) for action in SIGNS}
        if self._screen.json:
            self._screen.line(json_line({"message": "plan", **counts}))
            return
        if not counts["create"] and not counts["change"]:
            self._screen.line("nothing to do" + (", but for what is told above" if counts["refuse"] else ""))
            self._tell_how_to_make_alike(steps)
            return
        drastic = " --yes" if any(step.drastic for step in steps) else ""
        self._screen.line(
            f"{counts['create']} to create, {counts['change']} to change. Do it:  {self._apply()}{drastic}"
        )

    def _sum_up_applied(self, steps: Sequence[Step], left: int, *, yes: bool) -> None:
        done = sum(step.action in ("create", "change") and (yes or not step.drastic) for step in steps)
        grown = [step for step in steps if step.grows and yes]
        if self._screen.json:
            self._screen.line(
                json_line({"message": "applied", "done": done, "left": left, "grown": [step.topic for step in grown]})
            )
            return
        if any(step.drastic for step in steps) and not yes:
            self._screen.line(f"Not done, because it cannot be undone. All the same:  {self._apply()} --yes")
            return
        if not done and not left:
            self._screen.line("nothing to do")
        self._tell_how_to_make_alike(steps)
        for step in grown:
            assert step.before is not None
            self._screen.line(
                f"Whoever wrote to {step.topic} before uses {step.before.partitions} of its partitions until:  "
                f"microflow topics switch {step.topic}{''.join(f' {each}' for each in self._wishes.targets)}"
            )

    def _tell_how_to_make_alike(self, steps: Sequence[Step]) -> None:
        """What is done for topics of other counts than their partners, which nobody has asked for by name."""
        if options := making_alike(steps):
            targets = " ".join(self._wishes.targets)
            self._screen.line(f"To make those alike:  microflow topics apply {targets} {options} --yes")

    def _show(self, step: Step, *, done: bool = False) -> None:
        if self._screen.json:
            self._screen.line(json_line(_fields(step, done=done)))
            return
        if self._screen.quiet and step.action == "keep":
            return
        sign = "✔" if done else SIGNS[step.action]
        colour = "green" if done else COLOURS[step.action]
        widest = max(len(name) for name in self._needs)
        head = self._screen.style(f"{sign} {step.topic:<{widest}}", fg=colour)
        self._screen.line(f"  {head}  {_what(step, done=done)}")
        for text in (*step.refused, *(() if done else step.drastic), *step.notes):
            self._screen.line(f"    {'':<{widest}}  {text}")

    def _apply(self) -> str:
        wishes = self._wishes
        words = [f"--partitions {each}" for each in wishes.partitions]
        words += [
            f"--{name.replace('_', '-')} {value}"
            for name in ("replication", "min_in_sync", "retention", "kafka")
            if (value := getattr(wishes, name)) is not None
        ]
        return " ".join(["microflow topics apply", *wishes.targets, *words])


def _changes(before: TopicLayout, after: TopicLayout) -> TopicLayout:
    """What of a layout is to be altered; the rest is left as it is, even if the log decides otherwise tomorrow."""
    return TopicLayout(
        partitions=after.partitions,
        min_in_sync=after.min_in_sync if after.min_in_sync != before.min_in_sync else None,
        retention=after.retention if after.retention != before.retention else None,
    )


def _what(step: Step, *, done: bool) -> str:
    need = step.need
    flow = f"{', '.join(need.writers) or '?'} → {', '.join(need.readers) or 'nobody here'}"
    about = f"dead letters of {need.dead_letters_of}" if need.dead_letters_of else flow
    match step.action:
        case "create":
            return f"{'created' if done else 'create'} · {_in_words(step.after)} · {about}"
        case "change":
            assert step.before is not None
            return f"{'changed' if done else 'change'} · {_difference(step.before, step.after)} · {about}"
        case "refuse" if step.before is None:
            return f"not created · {about}"
        case _:
            assert step.before is not None
            return f"{_in_words(step.before)} · {about}"


def _in_words(layout: TopicLayout) -> str:
    return " · ".join(
        text for name, text in _parts(layout).items() if text and (name == "partitions" or getattr(layout, name))
    )


def _difference(before: TopicLayout, after: TopicLayout) -> str:
    old, new = _parts(before), _parts(after)
    changes = [f"{old[name]} → {new[name]}" for name in new if old[name] != new[name] and name != "partitions"]
    if before.partitions != after.partitions:
        changes.insert(0, f"{before.partitions} → {after.partitions} partitions")
    return " · ".join(changes)


def _parts(layout: TopicLayout) -> dict[str, str]:
    return {
        "partitions": f"{layout.partitions} partition{'s' if layout.partitions != 1 else ''}",
        "replication": f"replication {layout.replication}",
        "min_in_sync": f"min in sync {layout.min_in_sync}",
        "retention": f"retention {_span(layout.retention)}",
    }


def _span(span: timedelta | None) -> str:
    if span is None:
        return "the log's"
    if span == FOREVER:
        return "forever"
    hours = span / timedelta(hours=1)
    if hours >= 48 and hours % 24 == 0:
        return f"{hours / 24:.0f} d"
    return f"{hours:g} h" if hours >= 1 else f"{span.total_seconds():g} s"


def _fields(step: Step, *, done: bool) -> dict[str, object]:
    return {
        "topic": step.topic,
        "action": step.action,
        "done": done,
        "before": None if step.before is None else _as_json(step.before),
        "after": _as_json(step.after),
        "readers": step.need.readers,
        "writers": step.need.writers,
        "drastic": step.drastic,
        "refused": step.refused,
        "notes": step.notes,
    }


def _as_json(layout: TopicLayout) -> dict[str, object]:
    retention = layout.retention
    return {
        "partitions": layout.partitions,
        "replication": layout.replication,
        "min_in_sync": layout.min_in_sync,
        "retention_s": None if retention is None else "forever" if retention == FOREVER else retention.total_seconds(),
    }
