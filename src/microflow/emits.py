"""What a handler may emit: its return annotation, read as a grammar, and what it returned, checked against it.

emits := item | emits "|" emits | tuple[emits, …] | list[emits] | Sequence[emits]
       | Iterator[emits] | AsyncIterator[emits] | None
"""

from __future__ import annotations

import collections.abc
import difflib
import types
import typing
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Annotated, Any, TypeAlias, Union

import typing_extensions

from microflow.errors import ContractError, DefinitionError
from microflow.events import BARE, Message, options_of


@dataclass(frozen=True, slots=True)
class Item:
    """One event of exactly this class."""

    event: type[Message]


@dataclass(frozen=True, slots=True)
class OneOf:
    choices: tuple[Emits, ...]


@dataclass(frozen=True, slots=True)
class Fixed:
    """`tuple[A, B]`: one of each, in this order."""

    parts: tuple[Emits, ...]


@dataclass(frozen=True, slots=True)
class Many:
    """Any number of them: a list, another sequence, or an iterator that is drained while the handler runs."""

    of: Emits
    streamed: bool


@dataclass(frozen=True, slots=True)
class Nothing:
    """`None`: the handler need not emit."""


Emits: TypeAlias = Item | OneOf | Fixed | Many | Nothing

SEQUENCES = {list, collections.abc.Sequence}
STREAMS = {
    collections.abc.Iterator,
    collections.abc.Iterable,
    collections.abc.Generator,
    collections.abc.AsyncIterator,
    collections.abc.AsyncIterable,
    collections.abc.AsyncGenerator,
}


def read_emits(annotation: Any, *, function: str, where: str) -> Emits:
    """The grammar of a return annotation. Raises DefinitionError for one that names something else than events."""
    if annotation is None or annotation is types.NoneType:
        return Nothing()
    if isinstance(annotation, typing_extensions.TypeAliasType) or type(annotation).__name__ == "TypeAliasType":
        return read_emits(annotation.__value__, function=function, where=where)
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        return read_emits(arguments[0], function=function, where=where)
    if origin in {Union, types.UnionType}:
        return OneOf(tuple(read_emits(each, function=function, where=where) for each in arguments))
    if origin is tuple and arguments and arguments[-1] is Ellipsis:
        return Many(read_emits(arguments[0], function=function, where=where), streamed=False)
    if origin is tuple:
        return Fixed(tuple(read_emits(each, function=function, where=where) for each in arguments))
    if origin in SEQUENCES | STREAMS and arguments:
        return Many(read_emits(arguments[0], function=function, where=where), streamed=origin in STREAMS)
    if isinstance(annotation, type) and issubclass(annotation, Message) and annotation not in BARE:
        return Item(annotation)
    raise DefinitionError(_not_an_event(annotation, function), where=where, fix=_for_example(annotation, function))


def classes_of(emits: Emits) -> tuple[type[Message], ...]:
    """The event classes that a grammar names, each once, in the order in which they are written."""
    return tuple(dict.fromkeys(_classes(emits)))


def _classes(emits: Emits) -> Iterator[type[Message]]:
    match emits:
        case Item(event):
            yield event
        case OneOf(parts) | Fixed(parts):
            for part in parts:
                yield from _classes(part)
        case Many(of, _):
            yield from _classes(of)
        case Nothing():
            return


def describe(emits: Emits) -> str:
    """A grammar as a person would write it."""
    return " | ".join(options_of(event).type for event in classes_of(emits)) or "nothing"


@dataclass(frozen=True, slots=True)
class Drained:
    """What an iterator yielded."""

    items: list[Any]


def drain(value: Any, *, limit: int) -> Any:
    """Exhaust a plain iterator, where the handler runs, into `Drained`; anything else is returned as it is."""
    if not isinstance(value, Iterator):
        return value
    items: list[Any] = []
    for item in value:
        _check_limit(items, limit)
        items.append(item)
    return Drained(items)


async def drain_async(value: Any, *, limit: int) -> Any:
    """Exhaust a plain or an asynchronous iterator."""
    if not isinstance(value, AsyncIterator):
        return drain(value, limit=limit)
    items: list[Any] = []
    async for item in value:
        _check_limit(items, limit)
        items.append(item)
    return Drained(items)


def _check_limit(items: list[Any], limit: int) -> None:
    if len(items) >= limit:
        raise ContractError(
            f"The handler emits more than {limit} events for one event.",
            why="They are committed in one transaction.",
            fix="Emit them in portions, each caused by the one before, or raise `max_emitted`.",
        )


def emitted(value: Any, emits: Emits, *, function: str, where: str) -> list[Message]:
    """The events in what a handler returned (drained). Raises ContractError if it does not fit the declaration."""
    events = list(_flat(value))
    declared = classes_of(emits)
    for event in events:
        if type(event) not in declared:
            raise ContractError(
                f"{function} emitted {_name(event)}, but declares {describe(emits)}.",
                where=where,
                fix=_did_you_mean(_name(event), [each.__name__ for each in declared], function),
            )
    if not fits(value, emits):
        raise ContractError(
            f"{function} returned {_shape(value)}, which does not have the shape of its annotation.",
            where=where,
            why=f"It declares {describe(emits)}.",
        )
    return events


def fits(value: Any, emits: Emits) -> bool:
    """Whether a drained value has the shape of a grammar."""
    match emits:
        case Nothing():
            return value is None
        case Item(event):
            return type(value) is event
        case OneOf(choices):
            return any(fits(value, choice) for choice in choices)
        case Fixed(parts):
            return (
                isinstance(value, tuple)
                and len(value) == len(parts)
                and all(fits(each, part) for each, part in zip(value, parts, strict=True))
            )
        case Many(of, streamed):
            items = value.items if isinstance(value, Drained) and streamed else value
            return isinstance(items, collections.abc.Sequence) and all(fits(each, of) for each in items)


def _flat(value: Any) -> Iterator[Any]:
    if isinstance(value, Drained):
        value = value.items
    if isinstance(value, list | tuple):
        for each in value:
            yield from _flat(each)
    elif value is not None:
        yield value


def _name(value: Any) -> str:
    return type(value).__name__


def _shape(value: Any) -> str:
    if isinstance(value, Drained):
        return "an iterator"
    if isinstance(value, list | tuple):
        return f"a {_name(value)} of {len(value)}"
    return "None" if value is None else _name(value)


def _did_you_mean(name: str, declared: list[str], function: str) -> str:
    near = difflib.get_close_matches(name, declared, n=1)
    suggestion = f"Did you mean {near[0]}? " if near else f"Declare it: {function}(…) -> … | {name}. "
    return suggestion + "Nothing was written."


def _not_an_event(annotation: Any, function: str) -> str:
    if isinstance(annotation, type) and annotation in BARE:
        return f"{function} declares that it emits {annotation.__name__}, which says nothing: name the events."
    name = annotation.__name__ if isinstance(annotation, type) else str(annotation)
    return f"{function} declares that it emits {name}, which is no event."


def _for_example(annotation: Any, function: str) -> str:
    if isinstance(annotation, type) and annotation not in BARE and not issubclass(annotation, Message):
        return f"Make it one: class {annotation.__name__}(Event), or declare `-> None` if {function} emits nothing."
    return "For example: -> PaymentReceived | PaymentDeclined, or -> None if it emits nothing."
