"""What topics need: which services read and write them, how they are, how they are to be, and what leads from one to
the other. Nothing is deleted, and nothing shrinks."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, TypeAlias

from microflow.dead_letter_copies import topic_of_copies
from microflow.errors import nearest
from microflow.ports import TopicLayout
from microflow.service import Definition
from microflow.settings import Settings, TopicSettings

Action: TypeAlias = Literal["create", "change", "keep", "refuse"]


@dataclass(frozen=True, slots=True)
class Need:
    """A topic that services need: who reads it, who writes it, and whose dead letters it is for."""

    topic: str
    readers: tuple[str, ...] = ()
    writers: tuple[str, ...] = ()
    dead_letters_of: str | None = None


@dataclass(frozen=True, slots=True)
class Step:
    """What is to be done for one topic. `before` is None for one that does not exist.

    `grows` and what else cannot be undone, or takes records away, is `drastic`: it is done only when it is confirmed.
    `refused` says what was asked for and will not be done, `notes` what whoever reads the plan should know.
    """

    need: Need
    before: TopicLayout | None
    after: TopicLayout
    drastic: tuple[str, ...] = ()
    refused: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def topic(self) -> str:
        return self.need.topic

    @property
    def action(self) -> Action:
        if self.before is None:
            return "refuse" if self.refused else "create"
        if self.before != self.after:
            return "change"
        return "refuse" if self.refused else "keep"

    @property
    def grows(self) -> bool:
        return self.before is not None and self.after.partitions > self.before.partitions


@dataclass(slots=True)
class _Said:
    drastic: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def needs_of(definitions: Iterable[Definition]) -> dict[str, Need]:
    """All topics that services read and write, and one for the dead letters of each, by name."""
    needs: dict[str, Need] = {}
    for definition in definitions:
        for topic in definition.topics:
            need = needs.get(topic, Need(topic))
            needs[topic] = replace(need, readers=(*need.readers, definition.name))
        for topic in dict.fromkeys(definition.emitted.values()):
            need = needs.get(topic, Need(topic))
            needs[topic] = replace(need, writers=(*need.writers, definition.name))
        dead = topic_of_copies(definition.name)
        needs[dead] = Need(dead, writers=(definition.name,), dead_letters_of=definition.name)
    return needs


def plan(
    needs: Mapping[str, Need], existing: Mapping[str, TopicLayout], *, all_topics: Collection[str], settings: Settings
) -> list[Step]:
    """What is to be done so that every need is met, by topic. `all_topics` are those that the log has."""
    counts = {
        name: settings.topic_of.get(name, TopicSettings()).partitions
        or (existing[name].partitions if name in existing else None)
        for name in needs
    }
    steps = []
    for name, need in sorted(needs.items(), key=lambda each: (each[1].dead_letters_of is not None, each[0])):
        wanted = settings.made_as(name)
        if name in existing:
            steps.append(_step(need, existing[name], wanted, settings.topic_of.get(name, TopicSettings()).partitions))
        else:
            count = counts[name] or _partners_count(need, needs, counts) or wanted.partitions
            steps.append(_creation(need, replace(wanted, partitions=count), all_topics))
    return _with_partners(steps)


def _creation(need: Need, wanted: TopicSettings, all_topics: Collection[str]) -> Step:
    said = _Said()
    twin = next((each for each in all_topics if each != need.topic and _folded(each) == _folded(need.topic)), None)
    if twin is not None:
        said.refused.append(f"it and {twin} are one name to Kafka's metrics, which cannot tell '.' from '_'")
    near = nearest(need.topic, all_topics)
    if near is not None and twin is None and not need.writers:
        said.notes.append(f"nobody here writes it; did you mean {near}?")
    after = TopicLayout(
        partitions=wanted.partitions or 1,
        replication=wanted.replication,
        min_in_sync=wanted.min_in_sync,
        retention=wanted.retention,
    )
    return _made(need, None, after, said)


def _step(need: Need, before: TopicLayout, wanted: TopicSettings, partitions: int | None) -> Step:
    """What is to be done for a topic that exists. Its partitions change only if they were asked for by name."""
    said = _Said()
    after = before
    if partitions is not None and partitions > before.partitions:
        after = replace(after, partitions=partitions)
        said.drastic.append(f"{before.partitions} → {partitions} partitions can never be taken back")
    elif partitions is not None and partitions < before.partitions:
        said.refused.append(f"it has {before.partitions} partitions, and a topic never shrinks to {partitions}")
    if wanted.replication is not None and before.replication not in (None, wanted.replication):
        said.refused.append(
            f"it has {before.replication} copies, and {wanted.replication} are made by kafka-reassign-partitions only"
        )
    if wanted.min_in_sync is not None and before.min_in_sync not in (None, wanted.min_in_sync):
        after = replace(after, min_in_sync=wanted.min_in_sync)
        if wanted.min_in_sync < (before.min_in_sync or 0):
            said.drastic.append(f"with {wanted.min_in_sync} copies in sync less is safe than with {before.min_in_sync}")
    if wanted.retention is not None and before.retention not in (None, wanted.retention):
        after = replace(after, retention=wanted.retention)
        if wanted.retention < (before.retention or wanted.retention):
            said.drastic.append("a shorter retention deletes what is older")
    return _made(need, before, after, said)


def _made(need: Need, before: TopicLayout | None, after: TopicLayout, said: _Said) -> Step:
    return Step(need, before, after, tuple(said.drastic), tuple(said.refused), tuple(said.notes))


def _partners_count(need: Need, needs: Mapping[str, Need], counts: Mapping[str, int | None]) -> int | None:
    """The most partitions of a topic that a service reads beside this one: those who share a reader are alike."""
    if need.dead_letters_of is not None:
        return None
    readers = set(need.readers)
    return max((counts[name] or 0 for name, each in needs.items() if readers & set(each.readers)), default=0) or None


def _with_partners(steps: Sequence[Step]) -> list[Step]:
    """The steps, with a note where a service reads topics of different counts."""
    readers = dict.fromkeys(reader for step in steps for reader in step.need.readers)
    noted = {step.topic: step for step in steps}
    for reader in readers:
        read = [step for step in steps if reader in step.need.readers]
        most = max(read, key=lambda step: step.after.partitions)
        for step in read:
            if step.after.partitions < most.after.partitions:
                note = (
                    f"{reader} reads {most.topic} too, which has {most.after.partitions} partitions: one key's events "
                    f"may go to different processes"
                )
                noted[step.topic] = replace(noted[step.topic], notes=(*noted[step.topic].notes, note))
    return list(noted.values())


def _folded(name: str) -> str:
    return name.replace(".", "_")
