"""Topics: whether they are there, fit each other, are safe, and may be used."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from microflow.cli.probes.findings import Finding, ok, problem, warning
from microflow.cli.probes.log import SharedLog, is_there
from microflow.cli.topic_plan import Need, Step, partner, plan
from microflow.connect import LOCAL
from microflow.errors import nearest
from microflow.permissions import permitting
from microflow.ports import LogState, TopicState
from microflow.settings import Settings

ON_THIS_MACHINE = ("localhost", "127.", "[::1]")
ENOUGH_COPIES = 2


async def look_at_topics(
    log: SharedLog, needs: Mapping[str, Need], settings: Settings, *, targets: Sequence[str]
) -> Sequence[Finding]:
    """Whether every topic that services need is there, fits the others, is safe, and may be used."""
    transport = await log.get_or_none() if needs and is_there(settings) else None
    if transport is None:
        return []
    state = await transport.inspection.log(needs.keys())
    layouts = {name: topic.layout for name, topic in state.topics.items() if topic.layout is not None}
    seen = {name: need for name, need in needs.items() if name in layouts or name not in state.topics}
    known = await transport.topics.describe()
    steps = plan(seen, layouts, all_topics=known.keys(), settings=settings)
    apply = " ".join(["microflow topics apply", *targets])
    makes_them = settings.kafka.startswith(LOCAL)
    findings = [] if makes_them else [_missing(step, known, apply) for step in steps if step.before is None]
    findings += _of_other_counts([replace(step, after=step.before) for step in steps if step.before], apply)
    for name, topic in state.topics.items():
        findings += _forbidden(needs[name], topic, settings)
        if state.brokers > 1 or not settings.kafka.startswith(ON_THIS_MACHINE):
            findings += _unsafe(name, topic, state, apply)
    there = len(layouts)
    hidden = f", and {len(state.topics) - there} cannot be looked at" if there < len(state.topics) else ""
    made = " (the others are made when they are first named)" if makes_them and there < len(needs) else ""
    return [ok(f"{there} of {len(needs)} topics exist{made}{hidden}"), *findings]


def _missing(step: Step, known: Mapping[str, object], apply: str) -> Finding:
    need = step.need
    if need.dead_letters_of is not None:
        text = f"topic {need.topic} does not exist: {need.dead_letters_of}'s dead letters are kept in its database only"
        return warning(text, apply)
    if need.writers:
        writers = " and ".join(need.writers)
        return problem(f"topic {need.topic} does not exist: {writers} cannot start without it", apply)
    near = nearest(need.topic, known)
    meant = f"; did you mean {near}?" if near else ""
    return warning(f"topic {need.topic}, which {' and '.join(need.readers)} reads, does not exist yet{meant}", apply)


def _of_other_counts(steps: Sequence[Step], apply: str) -> Iterator[Finding]:
    for step in steps:
        if (most := partner(step, steps)) is not None:
            yield warning(
                f"topic {step.topic} has {step.after.partitions} partitions, partner topic {most.topic} has "
                f"{most.after.partitions}: one key's events may go to different processes",
                f"{apply} --partitions {step.topic}={most.after.partitions} --yes",
            )


def _forbidden(need: Need, topic: TopicState, settings: Settings) -> Iterator[Finding]:
    """What services need to do with a topic, and this user may not."""
    for may, who, verb, operation in (
        (topic.may_read, need.readers, "read", "Read"),
        (topic.may_write, need.writers, "write", "Write"),
    ):
        if who and may is False:
            yield problem(
                f"topic {need.topic}: this user may not {verb} it, and {' and '.join(who)} must",
                permitting(settings, operation, topic=need.topic),
            )


def _unsafe(name: str, topic: TopicState, state: LogState, apply: str) -> Iterator[Finding]:
    """What may lose events that were acknowledged, where more than a developer's machine is at stake."""
    layout = topic.layout
    if layout is None:
        return
    if layout.replication == 1:
        yield warning(
            f"topic {name} has one copy of each partition: with its broker its events are gone",
            f"kafka-reassign-partitions.sh … to {min(3, state.brokers)} of the brokers (new ones: --replication 3)"
            if state.brokers > 1
            else "a cluster of three brokers, and  microflow topics apply … --replication 3 --min-in-sync 2",
        )
    elif layout.replication is not None and (layout.min_in_sync or ENOUGH_COPIES) < ENOUGH_COPIES:
        yield warning(
            f"topic {name} counts an event as written when one copy has it: with that broker it is gone",
            f"{apply} --min-in-sync 2",
        )
    if topic.unclean:
        yield warning(
            f"topic {name} may be led by a broker that has not all its events (unclean.leader.election.enable)",
            f"kafka-configs.sh --alter --entity-type topics --entity-name {name} "
            "--add-config unclean.leader.election.enable=false",
        )
