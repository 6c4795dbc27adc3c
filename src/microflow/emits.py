"""What a handler may emit: its return annotation, read as a grammar, and what it returned, checked against it.

emits := item | emits "|" emits | tuple[emits, …] | list[emits] | Sequence[emits]
       | Iterator[emits] | AsyncIterator[emits] | None
"""

from __future__ import annotations

import collections.abc
import types
import typing
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Any, TypeAlias, Union

import typing_extensions

from microflow.errors import ContractError, DefinitionError, nearest
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

PYTHONS = {"builtins", "collections.abc", "typing"}
# A handler that only ever raises `Reject` emits nothing either.
NO_EVENT = (None, types.NoneType, typing.NoReturn, typing.Never)
SEQUENCES = {list, collections.abc.Sequence}
STREAMS = {
    collections.abc.Iterator,
    collections.abc.Iterable,
    collections.abc.Generator,
    collections.abc.AsyncIterator,
    collections.abc.AsyncIterable,
    collections.abc.AsyncGenerator,
}


def read_emits(annotation: Any, *, function: str, where: str, names: Mapping[str, Any] | None = None) -> Emits:
    """The grammar of a return annotation. `names` are those of its module, for text inside of type aliases.

    Raises DefinitionError for an annotation that names something else than events.
    """
    try:
        return _Reading(function, where, dict(names or {})).read(annotation)
    except RecursionError:
        raise DefinitionError(
            f"The return annotation of {function} contains itself.",
            where=where,
            why="What a handler emits is known before it runs, so a type alias cannot refer to itself.",
            fix="For example: -> list[PaymentReceived | PaymentDeclined]",
        ) from None


@dataclass(frozen=True, slots=True)
class _Reading:
    function: str
    where: str
    names: dict[str, Any]

    def read(self, annotation: Any) -> Emits:
        if annotation in NO_EVENT:
            return Nothing()
        if _is_alias(annotation):
            return self.read(annotation.__value__)
        if isinstance(annotation, str | typing.ForwardRef):
            return self.read(self._named(annotation))
        origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
        if _is_alias(origin):
            return self.read(_filled_in(origin, arguments))
        if origin is Annotated:
            return self.read(arguments[0])
        if origin in {Union, types.UnionType}:
            return OneOf(tuple(map(self.read, arguments)))
        if origin is tuple and arguments and arguments[-1] is Ellipsis:
            return Many(self.read(arguments[0]), streamed=False)
        if origin is tuple:
            return Fixed(tuple(map(self.read, arguments)))
        if origin in SEQUENCES | STREAMS and arguments:
            return Many(self.read(arguments[0]), streamed=origin in STREAMS)
        if isinstance(annotation, type) and issubclass(annotation, Message) and annotation not in BARE:
            return Item(annotation)
        raise DefinitionError(
            _not_an_event(annotation, self.function), where=self.where, fix=_for_example(annotation, self.function)
        )

    def _named(self, text: str | typing.ForwardRef) -> Any:
        written = types.SimpleNamespace(__annotations__={"it": text})
        try:
            return typing.get_type_hints(written, self.names, include_extras=True)["it"]
        except RecursionError:
            raise
        except Exception as cause:  # an annotation is an expression of the user's and may raise anything
            raise DefinitionError(
                f"The return annotation of {self.function} cannot be read: {cause}.",
                where=self.where,
                why="The names in it must be importable when the service starts, not under TYPE_CHECKING only.",
            ) from cause


def _is_alias(annotation: Any) -> bool:
    # `type Outcome = …` of Python 3.12, and its forerunner in typing_extensions, which is another class before 3.14.
    return isinstance(annotation, typing_extensions.TypeAliasType) or type(annotation).__name__ == "TypeAliasType"


def _filled_in(alias: Any, arguments: tuple[Any, ...]) -> Any:
    value = alias.__value__
    if isinstance(value, typing.TypeVar):
        return arguments[alias.__type_params__.index(value)]
    return value[arguments[0] if len(arguments) == 1 else arguments]


@lru_cache(maxsize=1024)
def classes_of(emits: Emits) -> tuple[type[Message], ...]:
    """The event classes that a grammar names, each once, in the order in which they are written."""
    return tuple(dict.fromkeys(_classes(emits)))


def is_streamed(emits: Emits) -> bool:
    """Whether a function that yields may have this annotation."""
    match emits:
        case Many(streamed=streamed):
            return streamed
        case OneOf(choices):
            return any(map(is_streamed, choices))
        case _:
            return False


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
    """The types that a grammar names, as a person would write them."""
    return " | ".join(options_of(event).type for event in classes_of(emits)) or "nothing"


def written(emits: Emits) -> str:
    """A grammar with its shape, as it would stand in an annotation."""
    match emits:
        case Item(event):
            return event.__name__
        case OneOf(choices):
            return " | ".join(written(each) for each in choices)
        case Fixed(parts):
            return f"tuple[{', '.join(written(each) for each in parts) or '()'}]"
        case Many(of, streamed):
            return f"{'Iterator' if streamed else 'list'}[{written(of)}]"
        case Nothing():
            return "None"


@dataclass(frozen=True, slots=True)
class Drained:
    """What an iterator yielded."""

    items: list[Any]


def drain(value: Any, *, limit: int) -> Any:
    """A plain handler's result with its iterators exhausted into `Drained`. Runs where the handler runs.

    Raises ContractError for more than `limit` events, however they are returned.
    """
    return _drain(value, _Counter(limit))


async def drain_async(value: Any, *, limit: int) -> Any:
    """The same for an async handler, whose iterators may be asynchronous."""
    if isinstance(value, Message):
        return value
    return await _drain_async(value, _Counter(limit))


class _Counter:
    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.count = 0

    def add(self) -> None:
        self.count += 1
        if self.count > self.limit:
            raise ContractError(
                f"The handler emits more than {self.limit} events for one event.",
                why="They are committed in one transaction.",
                fix="Emit them in portions, each caused by the one before, or raise `max_emitted`.",
            )


def _drain(value: Any, counter: _Counter) -> Any:
    if isinstance(value, Message):
        counter.add()
        return value
    if isinstance(value, Iterator):
        return Drained(_drain_iterator(value, counter))
    if _is_sequence(value):
        return _like(value, [_drain(each, counter) for each in value])
    counter.add()  # whatever it is: an iterator that never ends need not be one of events
    return value


def _drain_iterator(iterator: Iterator[Any], counter: _Counter) -> list[Any]:
    try:
        return [_drain(each, counter) for each in iterator]
    finally:
        # Beyond the limit it is not exhausted: what it holds is given back now, not when it is collected.
        if isinstance(iterator, collections.abc.Generator):
            iterator.close()


async def _drain_async(value: Any, counter: _Counter) -> Any:
    if isinstance(value, Message):
        counter.add()
        return value
    if isinstance(value, AsyncIterator):
        return Drained(await _drain_async_iterator(value, counter))
    if _is_sequence(value):
        return _like(value, [await _drain_async(each, counter) for each in value])
    return _drain(value, counter)


async def _drain_async_iterator(iterator: AsyncIterator[Any], counter: _Counter) -> list[Any]:
    try:
        return [await _drain_async(each, counter) async for each in iterator]
    finally:
        if isinstance(iterator, collections.abc.AsyncGenerator):
            await iterator.aclose()


def _is_sequence(value: Any) -> bool:
    return isinstance(value, collections.abc.Sequence) and not isinstance(value, str | bytes | bytearray)


def _like(value: Any, items: list[Any]) -> Any:
    return tuple(items) if isinstance(value, tuple) else items


def emitted(value: Any, emits: Emits, *, function: str, where: str) -> list[Message]:
    """The events in what a handler returned (drained). Raises ContractError if it does not fit the declaration."""
    if isinstance(emits, Item) and type(value) is emits.event:
        return [value]
    events = list(_flat(value))
    declared = classes_of(emits)
    for event in events:
        if type(event) not in declared:
            raise _undeclared(event, emits, function, where)
    if not fits(value, emits):
        raise ContractError(
            f"{function} returned {_shape(value)}, but declares {written(emits)}.",
            where=where,
            why="What it returns must have the shape of its annotation. Nothing was written.",
            fix=_shape_fix(value, emits),
        )
    return events


def _undeclared(event: Any, emits: Emits, function: str, where: str) -> ContractError:
    name, declared = _name(event), classes_of(emits)
    if not isinstance(event, Message):
        return ContractError(
            f"{function} returned {_article(name)}, which is no event; it declares {written(emits)}.",
            where=where,
            why="Nothing was written.",
            fix=f"Return an instance of {describe(emits)}."
            if declared
            else "Return nothing, or declare what it emits.",
        )
    near = nearest(name, [each.__name__ for each in declared])
    twin = any(each.__name__ == name for each in declared)
    suggestion = f"Did you mean {near}?" if near else f"Declare it: {function}(…) -> … | {name}"
    if twin:
        suggestion = f"There are two classes called {name}: declare the one from {type(event).__module__}."
    return ContractError(
        f"{function} emitted {name}, but declares {describe(emits)}.",
        where=where,
        why="Nothing was written: the transaction was rolled back.",
        fix=suggestion,
    )


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
    if _is_sequence(value):
        for each in value:
            yield from _flat(each)
    elif value is not None:
        yield value


def _name(value: Any) -> str:
    return type(value).__name__


def _article(name: str) -> str:
    return f"an {name}" if name[:1].lower() in "aeiou" else f"a {name}"


def _shape(value: Any) -> str:
    if isinstance(value, Drained):
        return f"an iterator over {len(value.items)}"
    if _is_sequence(value):
        return f"a {_name(value)} of {len(value)}"
    return "nothing" if value is None else _name(value)


def _shape_fix(value: Any, emits: Emits) -> str:
    if value is None:
        return f"If it need not emit, say so: -> {written(emits)} | None"
    return f"Return {written(emits)}, or declare what it does return."


def _not_an_event(annotation: Any, function: str) -> str:
    if isinstance(annotation, type) and annotation in BARE:
        return f"{function} declares that it emits {annotation.__name__}, which says nothing: name the events."
    name = annotation.__name__ if isinstance(annotation, type) else str(annotation)
    return f"{function} declares that it emits {name}, which is no event."


def _for_example(annotation: Any, function: str) -> str:
    if isinstance(annotation, type) and not issubclass(annotation, Message) and annotation.__module__ not in PYTHONS:
        return f"Make it one: class {annotation.__name__}(Event), or declare `-> None` if {function} emits nothing."
    return "For example: -> PaymentReceived | PaymentDeclined, or -> None if it emits nothing."
