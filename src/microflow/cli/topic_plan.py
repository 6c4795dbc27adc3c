"""What topics need: which services read and write them, how they are, how they are to be, and what leads from one to
the other. Nothing is deleted, and nothing shrinks."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, TypeAlias

from microflow.dead_letter_copies import topic_of_copies
from microflow.errors import misspelling
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
            model = None if counts[name] else _model(need, needs, counts)
            count = counts[name] or (counts[model] if model else None) or wanted.partitions
            step = _creation(need, replace(wanted, partitions=count), all_topics, known=needs)
            like = f"as many partitions as {model}, which {_reads(need.readers)} too"
            steps.append(replace(step, notes=(*step.notes, like)) if model and count != wanted.partitions else step)
    return _with_partners(steps)


def partner(step: Step, steps: Iterable[Step]) -> Step | None:
    """The topic with the most partitions among those that a reader of this one reads too, if it has more than this.

    That breaks no promise, because order is one of a topic; but one key's events may then be handled by two processes
    at once, which wait for each other in the database.
    """
    readers = set(step.need.readers)
    read_too = [other for other in steps if readers & set(other.need.readers)]
    most = max(read_too, key=lambda each: each.after.partitions, default=step)
    return most if most.after.partitions > step.after.partitions else None


def making_alike(steps: Sequence[Step]) -> str:
    """The options of `microflow topics apply` by which topics that one service reads get the same count, if any."""
    counts = {step.topic: other.after.partitions for step in steps if (other := partner(step, steps)) is not None}
    return " ".join(f"--partitions {topic}={count}" for topic, count in counts.items())


def _creation(need: Need, wanted: TopicSettings, all_topics: Collection[str], *, known: Collection[str]) -> Step:
    said = _Said()
    twin = next((each for each in all_topics if each != need.topic and _folded(each) == _folded(need.topic)), None)
    if twin is not None:
        said.refused.append(f"it and {twin} are one name to Kafka's metrics, which cannot tell '.' from '_'")
    # Nobody has misspelt what another service of the plan has to do with.
    near = misspelling(need.topic, [each for each in all_topics if each not in known])
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
            f"it has {_copies(before.replication or 1)}, and {wanted.replication} are made by "
            "kafka-reassign-partitions only"
        )
    if wanted.min_in_sync is not None and before.min_in_sync not in (None, wanted.min_in_sync):
        after = replace(after, min_in_sync=wanted.min_in_sync)
        if wanted.min_in_sync < (before.min_in_sync or 0):
            said.drastic.append(
                f"with {_copies(wanted.min_in_sync)} in sync less is safe than with {before.min_in_sync}"
            )
    if wanted.retention is not None and before.retention not in (None, wanted.retention):
        after = replace(after, retention=wanted.retention)
        if wanted.retention < (before.retention or wanted.retention):
            said.drastic.append("a shorter retention deletes what is older")
    return _made(need, before, after, said)


def _made(need: Need, before: TopicLayout | None, after: TopicLayout, said: _Said) -> Step:
    return Step(need, before, after, tuple(said.drastic), tuple(said.refused), tuple(said.notes))


def _model(need: Need, needs: Mapping[str, Need], counts: Mapping[str, int | None]) -> str | None:
    """The topic with the most partitions that a service reads beside this one: those who share a reader are alike."""
    readers = set(need.readers)
    known = {name: counts[name] or 0 for name, each in needs.items() if readers & set(each.readers)}
    most = max(known, key=lambda name: known[name], default=None)
    return most if most is not None and known[most] else None


def _with_partners(steps: Sequence[Step]) -> list[Step]:
    """The steps, with a note where a service reads topics of different counts."""
    noted = []
    for step in steps:
        most = partner(step, steps)
        if most is not None:
            both = [reader for reader in step.need.readers if reader in most.need.readers]
            note = (
                f"{_reads(both)} {most.topic} too, which has {most.after.partitions} partitions: one key's events may "
                "go to different processes"
            )
            step = replace(step, notes=(*step.notes, note))
        noted.append(step)
    return noted


def _reads(readers: Sequence[str]) -> str:
    return f"{' and '.join(readers)} {'reads' if len(readers) == 1 else 'read'}"


def _copies(count: int) -> str:
    return "1 copy" if count == 1 else f"{count} copies"


def _folded(name: str) -> str:
    return name.replace(".", "_")
