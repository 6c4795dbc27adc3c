"""The graph of a system: who emits what and who handles it, known before anything runs.

An event finds its handlers by two names, its type and its topic: a handler that waits for the right type on another
topic waits for ever, and that is told here too.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from microflow.emits import classes_of, describe
from microflow.errors import DefinitionError, nearest
from microflow.events import Message, options_of
from microflow.handlers import Handler
from microflow.service import Definition


@dataclass(frozen=True, slots=True)
class Emission:
    """An edge from a handler to an event: this handler may emit it, to this topic."""

    service: str
    handler: Handler
    event: type[Message]
    topic: str

    @property
    def type(self) -> str:
        return options_of(self.event).type


@dataclass(frozen=True, slots=True)
class Reaction:
    """An edge from an event to a handler: this handler handles the type, as it is read from this topic."""

    service: str
    handler: Handler
    type: str
    topic: str


@dataclass(frozen=True, slots=True)
class Graph:
    """Several services as one system."""

    services: tuple[str, ...]
    emissions: tuple[Emission, ...]
    reactions: tuple[Reaction, ...]
    handlers: int

    @property
    def edges(self) -> tuple[Emission | Reaction, ...]:
        return (*self.emissions, *self.reactions)

    @property
    def types(self) -> frozenset[str]:
        """Every type of event that is emitted or handled."""
        return frozenset(edge.type for edge in self.edges)

    @property
    def topics(self) -> dict[str, frozenset[str]]:
        """Every topic, with the types that travel on it."""
        return {
            topic: frozenset(edge.type for edge in self.edges if edge.topic == topic)
            for topic in sorted({edge.topic for edge in self.edges})
        }

    @property
    def unhandled(self) -> tuple[Emission, ...]:
        """Events that are emitted, do not leave the system, and reach no handler."""
        handled = {(reaction.type, reaction.topic) for reaction in self.reactions}
        return tuple(
            emission
            for emission in self.emissions
            if not options_of(emission.event).external and (emission.type, emission.topic) not in handled
        )

    @property
    def unemitted(self) -> tuple[Reaction, ...]:
        """Handlers of events that nobody here emits to where they are read: they wait for the world outside."""
        emitted = {(emission.type, emission.topic) for emission in self.emissions}
        return tuple(reaction for reaction in self.reactions if (reaction.type, reaction.topic) not in emitted)

    @property
    def roots(self) -> frozenset[str]:
        """The types that come from outside: handled, and emitted by no service at all."""
        return frozenset(edge.type for edge in self.reactions) - {edge.type for edge in self.emissions}

    def handlers_of(self, emission: Emission) -> tuple[Reaction, ...]:
        """Who handles what is emitted."""
        return tuple(
            reaction
            for reaction in self.reactions
            if (reaction.type, reaction.topic) == (emission.type, emission.topic)
        )


def graph_of(definitions: Iterable[Definition]) -> Graph:
    """The graph of these services together."""
    services = tuple(definitions)
    return Graph(
        services=tuple(service.name for service in services),
        emissions=tuple(
            Emission(service.name, handler, event, service.emitted[event])
            for service in services
            for handler in service.handlers
            for event in classes_of(handler.emits)
        ),
        reactions=tuple(
            Reaction(service.name, handler, trigger.event_type, trigger.topic)
            for service in services
            for handler in service.handlers
            for trigger in handler.triggers
        ),
        handlers=sum(len(service.handlers) for service in services),
    )


# ── as text ───────────────────────────────────────────────────────────────────────────────────────────────────────


def summary(graph: Graph) -> str:
    """How much there is, and whether it hangs together, in one line."""
    counts = "  ".join(
        (
            _count(len(graph.services), "service"),
            _count(graph.handlers, "handler"),
            _count(len(graph.types), "event type"),
        )
    )
    lost = sorted({emission.type for emission in graph.unhandled})
    verdict = f"no handler for {', '.join(lost)}" if lost else "graph ok: every emitted event has a handler"
    return f"{counts}   {verdict}"


def describe_graph(graph: Graph) -> str:
    """One line for each handler: what starts it, who it is, what it emits."""
    lines = []
    for reaction in sorted(graph.reactions, key=lambda each: (each.service, each.type, each.handler.name)):
        emits = f" → {describe(reaction.handler.emits)}" if classes_of(reaction.handler.emits) else ""
        lines.append(f"{reaction.type} → {_who(reaction)}{emits}")
    return "\n".join(lines)


def problems(graph: Graph) -> list[DefinitionError]:
    """What does not hang together, each with its place and what to type. Nothing is raised: a part may run alone."""
    return [_lost(emission, graph) for emission in graph.unhandled]


def _lost(emission: Emission, graph: Graph) -> DefinitionError:
    elsewhere = [reaction for reaction in graph.reactions if reaction.type == emission.type]
    if elsewhere:
        reaction = elsewhere[0]
        return DefinitionError(
            f"{_who(emission)} emits {emission.type} to {emission.topic}, but {_who(reaction)} "
            f"({reaction.handler.where}) reads it from {reaction.topic}.",
            where=emission.handler.where,
            fix=f'Say @on("{emission.type}", topic="{emission.topic}")',
        )
    near = nearest(emission.type, {reaction.type for reaction in graph.unemitted})
    name = emission.event.__name__
    return DefinitionError(
        f"No handler listens to {emission.type}, but {_who(emission)} emits it.",
        where=emission.handler.where,
        why=f"There is one for {near}, which nobody emits: did you mean that?" if near else None,
        fix=f'Add @on("{emission.type}"), or say that it leaves the system: class {name}(Event, external=True)',
    )


def _who(edge: Emission | Reaction) -> str:
    return f"{edge.service}.{edge.handler.name}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
