"""The log: whether it answers, whether its topics are as services need them, and how far behind services are."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path

from microflow.cli.paths import log_in_words
from microflow.cli.probes.findings import Finding, ok, problem, warning
from microflow.cli.topic_plan import Need, Step, plan
from microflow.clocks import SystemClock
from microflow.connect import LOCAL, connect_transport, look_at_database
from microflow.errors import TransportError, nearest
from microflow.ports import TopicPartition, Transport
from microflow.service import Definition
from microflow.settings import MEMORY, Settings


class SharedLog:
    """The log that several probes look at: opened once, by whoever needs it first."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._opening: asyncio.Task[Transport] | None = None

    async def get(self) -> Transport:
        """The log, which has answered. Raises TransportError and SettingsError, to everybody who asks."""
        if self._opening is None:
            self._opening = asyncio.create_task(self._open())
        return await asyncio.shield(self._opening)

    async def get_or_none(self) -> Transport | None:
        """The log, or None where the probe that looks at it tells why there is none."""
        try:
            return await self.get()
        except TransportError:
            return None

    async def close(self) -> None:
        if self._opening is not None:
            self._opening.cancel()
            done, _ = await asyncio.wait([self._opening])
            for task in done:
                if not task.cancelled() and task.exception() is None:
                    await task.result().close()

    async def _open(self) -> Transport:
        return await connect_transport(self._settings, clock=SystemClock())


def is_there(settings: Settings) -> bool:
    """Whether a log can be looked at without making it."""
    if settings.kafka == MEMORY:
        return False
    return not settings.kafka.startswith(LOCAL) or Path(settings.kafka.removeprefix(LOCAL)).expanduser().exists()


async def look_at_log(log: SharedLog, settings: Settings) -> Sequence[Finding]:
    """Whether the log answers, and what it is."""
    name = log_in_words(settings.kafka)
    if not is_there(settings):
        return [ok(name if settings.kafka == MEMORY else f"{name} (not made yet)")]
    began = time.monotonic()
    transport = await log.get()
    topics = await transport.topics.describe()
    took = timedelta(seconds=time.monotonic() - began)
    return [ok(name, f"{len(topics)} topics", f"answers in {took / timedelta(milliseconds=1):.0f} ms")]


async def look_at_topics(
    log: SharedLog, needs: Mapping[str, Need], settings: Settings, *, targets: Sequence[str]
) -> Sequence[Finding]:
    """Whether every topic that services need is there, and fits the others."""
    transport = await log.get_or_none() if needs and is_there(settings) else None
    if transport is None:
        return []
    existing = await transport.administration.layouts(needs.keys())
    known = await transport.topics.describe()
    apply = " ".join(["microflow topics apply", *targets])
    steps = plan(needs, existing, all_topics=known.keys(), settings=settings)
    makes_them = settings.kafka.startswith(LOCAL)
    findings = [] if makes_them else [_missing(step, known, apply) for step in steps if step.before is None]
    findings += [
        _of_other_counts(step, steps, apply) for step in steps if step.before is not None and _is_behind(step, steps)
    ]
    there = sum(step.before is not None for step in steps)
    made = " (the others are made when they are first named)" if makes_them and there < len(steps) else ""
    return [ok(f"{there} of {len(steps)} topics exist{made}"), *findings]


def _missing(step: Step, known: Mapping[str, object], apply: str) -> Finding:
    need = step.need
    if need.dead_letters_of is not None:
        text = f"topic {need.topic} does not exist: {need.dead_letters_of}'s dead letters have no copy in the log"
        return problem(text, apply)
    if need.writers:
        return problem(
            f"topic {need.topic} does not exist: {' and '.join(need.writers)} cannot start without it", apply
        )
    near = nearest(need.topic, known)
    meant = f"; did you mean {near}?" if near else ""
    return warning(f"topic {need.topic}, which {' and '.join(need.readers)} reads, does not exist yet{meant}", apply)


def _most(step: Step, steps: Sequence[Step]) -> Step:
    """The topic with the most partitions among those that a reader of this one reads, itself included."""
    readers = set(step.need.readers)
    partners = [other for other in steps if other.before is not None and readers & set(other.need.readers)]
    return max([step, *partners], key=lambda each: each.after.partitions)


def _is_behind(step: Step, steps: Sequence[Step]) -> bool:
    return _most(step, steps).after.partitions > step.after.partitions


def _of_other_counts(step: Step, steps: Sequence[Step], apply: str) -> Finding:
    partner = _most(step, steps)
    return problem(
        f"topic {step.topic} has {step.after.partitions} partitions, partner topic {partner.topic} has "
        f"{partner.after.partitions}: one key's events may spread over different workers",
        f"{apply} --partitions {step.topic}={partner.after.partitions} --yes",
    )


async def look_at_lag(log: SharedLog, definition: Definition, settings: Settings, *, target: str) -> Sequence[Finding]:
    """How many records a service has still to handle, by its own database."""
    if settings.database_of(definition.name) == MEMORY or not is_there(settings):
        return []
    if (transport := await log.get_or_none()) is None:
        return []
    watermarks = (await look_at_database(settings, service=definition.name)).watermarks
    described = await transport.topics.describe(definition.topics.keys())
    partitions = [TopicPartition(each.name, number) for each in described.values() for number in range(each.partitions)]
    bounds = await transport.topics.bounds(partitions)
    lag = sum(max(bound.end - watermarks.get(each, bound.beginning), 0) for each, bound in bounds.items())
    lost = {each: bound.beginning - watermarks[each] for each, bound in bounds.items() if each in watermarks}
    findings = [ok(f"group {definition.name}", f"{lag:,} records to handle in {len(partitions)} partitions")]
    for each, count in lost.items():
        if count > 0:
            findings.append(
                problem(
                    f"{count:,} records of {each.topic}[{each.partition}] are gone from the log, and {definition.name} "
                    f"has not read them",
                    f"microflow topics apply {target} --retention 30d     (for those that are still there)",
                )
            )
    return findings
