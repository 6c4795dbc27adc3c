"""A handler's signature: what its function asks for and emits, read from its annotations."""

from __future__ import annotations

import importlib.util
import inspect
import sys
import typing
from collections.abc import Callable, Mapping, Sequence
from types import NoneType, UnionType
from typing import Any

from microflow.connection import Connection
from microflow.context import Context
from microflow.emits import classes_of, is_streamed, read_emits, written
from microflow.errors import DefinitionError
from microflow.events import BARE, Message, check_event_class, check_topic, options_of
from microflow.handlers import MARKS, Handler, Mark, Parameter, Trigger
from microflow.places import place_of

READABLE = "Write the annotation so that Python can evaluate it, for example: order: OrderAccepted"


def handler_of(function: Callable[..., Any], recorded: Mapping[str, str]) -> Handler:
    """The handler that a marked function is. `recorded` is the topic of types that do not say it themselves.

    Raises DefinitionError, at the function's own line, for what cannot work.
    """
    marks: tuple[Mark, ...] = getattr(function, MARKS)
    where = place_of(function)
    hints = _hints(function, where)
    parameters = tuple(_parameters(function, hints, where))
    event_class = next(parameter.key for parameter in parameters if parameter.asks_for == "event")
    is_async = _is_async(function)
    _check_inside(function, parameters, where, is_async=is_async)
    names = inspect.unwrap(function).__globals__
    emits = read_emits(hints["return"], function=function.__name__, where=where, names=names)
    for event in (event_class, *classes_of(emits)):
        check_event_class(event)
    if (inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function)) and not is_streamed(emits):
        iterator = "AsyncIterator" if inspect.isasyncgenfunction(function) else "Iterator"
        raise DefinitionError(
            f"{function.__name__} yields, but declares {written(emits)}.",
            where=where,
            why="A function with a yield in it returns an iterator.",
            fix=f"-> {iterator}[{' | '.join(each.__name__ for each in classes_of(emits)) or '…'}], or return instead.",
        )
    triggers = dict.fromkeys(_trigger(each, event_class, recorded) for each in marks)
    return Handler(
        name=_agreed(marks, "name", function) or function.__name__,
        function=function,
        triggers=tuple(triggers),
        event_class=event_class,
        parameters=parameters,
        emits=emits,
        retry=_agreed(marks, "retry", function),
        deadline=_agreed(marks, "deadline", function),
        order=_agreed(marks, "order", function) or "key",
        halt=_agreed(marks, "halt", function) or False,
        is_async=is_async,
        where=where,
    )


def _check_inside(function: Callable[..., Any], parameters: Sequence[Parameter], where: str, *, is_async: bool) -> None:
    """What a handler that runs inside the transaction needs."""
    inside = next((each for each in parameters if each.asks_for in ("connection", "session")), None)
    if inside is not None and not is_async:
        raise DefinitionError(
            f"{function.__name__} is a plain def and asks for {inside.key.__name__}.",
            where=where,
            why="A plain function runs in a thread, and the transaction lives on the event loop.",
            fix=f"Write `async def {function.__name__}`, or use context.write(…).",
        )
    if any(each.asks_for == "session" for each in parameters) and importlib.util.find_spec("greenlet") is None:
        raise DefinitionError(
            f"{function.__name__} asks for a session of SQLAlchemy, whose asynchronous half is not installed.",
            where=where,
            why="It needs the package greenlet.",
            fix='pip install "microworkflow[sqlalchemy]"',
        )


def _agreed(marks: Sequence[Mark], word: str, function: Callable[..., Any]) -> Any:
    # Several @on over one function are one handler: what one of them says, the others may repeat, not contradict.
    given = [(getattr(mark, word), mark.where) for mark in marks if getattr(mark, word) is not None]
    for value, where in given[1:]:
        if value != given[0][0]:
            raise DefinitionError(
                f"The @on over {function.__name__} disagree on {word}: {given[0][0]!r} and {value!r}.",
                where=where,
                why=f"They are one handler, which has one {word}.",
                fix=f"Say {word}= once, or write two functions.",
            )
    return given[0][0] if given else None


def _is_async(function: Callable[..., Any]) -> bool:
    # A decorator that is a plain def around an async function still returns a coroutine.
    return any(
        inspect.iscoroutinefunction(each) or inspect.isasyncgenfunction(each)
        for each in (function, inspect.unwrap(function))
    )


def _trigger(mark: Mark, event_class: type[Message], recorded: Mapping[str, str]) -> Trigger:
    if mark.event_class is not None and not issubclass(mark.event_class, event_class):
        raise DefinitionError(
            f"@on({mark.event_class.__name__}) stands over a handler of {event_class.__name__}.",
            where=mark.where,
            why="A class in @on says that the handler reads that very class.",
            fix=f'@on("{mark.event_type}"), if {event_class.__name__} is what is read of it.',
        )
    own = options_of(mark.event_class).topic if mark.event_class is not None else None
    topic = mark.topic or own or options_of(event_class).topic or recorded.get(mark.event_type) or mark.event_type
    check_topic(topic, where=mark.where)
    return Trigger(mark.event_type, topic)


def _hints(function: Callable[..., Any], where: str) -> dict[str, Any]:
    try:
        hints = typing.get_type_hints(function, include_extras=True)
    except Exception as cause:  # an annotation is an expression of the user's and may raise anything
        raise DefinitionError(
            f"An annotation of {function.__name__} cannot be read: {cause}.",
            where=where,
            why="The names in it must be importable when the service starts, not under TYPE_CHECKING only.",
            fix=f"from … import {cause.name}" if isinstance(cause, NameError) and cause.name else READABLE,
        ) from cause
    if "return" not in hints:
        raise DefinitionError(
            f"{function.__name__} does not say what it emits.",
            where=where,
            fix="Annotate it: -> PaymentReceived | PaymentDeclined, or -> None if it emits nothing.",
        )
    return hints


def _parameters(function: Callable[..., Any], hints: Mapping[str, Any], where: str) -> list[Parameter]:
    parameters = []
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind in {parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD, parameter.POSITIONAL_ONLY}:
            raise DefinitionError(
                f"{function.__name__} takes {parameter}, and a handler's parameters are given by name.",
                where=where,
                why="A decorator between @on and the function hides its parameters unless it uses functools.wraps.",
                fix="Name each parameter and annotate it.",
            )
        if parameter.name in hints:
            parameters.append(_parameter(parameter, hints[parameter.name]))
        elif parameter.default is parameter.empty:
            raise DefinitionError(
                f"The parameter {parameter.name!r} of {function.__name__} has no annotation.",
                where=where,
                why="The annotation says what is passed: the event, Context, Connection, or what lifespan provides.",
                fix=f"{parameter.name}: OrderAccepted",
            )
    if [parameter.asks_for for parameter in parameters].count("event") != 1:
        raise _not_one_event(function, parameters, where)
    return parameters


def _not_one_event(function: Callable[..., Any], parameters: Sequence[Parameter], where: str) -> DefinitionError:
    name = function.__name__
    events = [parameter.name for parameter in parameters if parameter.asks_for == "event"]
    if events:
        return DefinitionError(
            f"{name} has {len(events)} parameters that are events ({', '.join(events)}), and needs exactly one.",
            where=where,
            why="A handler is called for one event at a time.",
            fix=f"def {name}({events[0]}: …)",
        )
    first = next((each for each in parameters if each.asks_for == "dependency"), None)
    asked: Any = first.key if first is not None else None
    if first is None or asked in BARE:
        fix = f"def {name}(order: OrderAccepted, …), where class OrderAccepted(Event)."
        why = f"{asked.__name__} says nothing: name the event and the fields that are read." if first else None
    elif typing.get_origin(asked) in {typing.Union, UnionType}:
        fix, why = (
            f"class OrderChanged(Event): …, with the fields that {name} reads.",
            (f"{first.name} is one of several classes; a handler of several events has one view of them."),
        )
    elif isinstance(asked, type):
        fix = f"class {asked.__name__}(Event): …"
        why = f"{first.name} is annotated with {asked.__name__}, which is no Event."
    else:
        fix, why = f"{first.name}: OrderAccepted, where class OrderAccepted(Event).", None
    return DefinitionError(f"{name} has no parameter that is an event.", where=where, why=why, fix=fix)


def _parameter(parameter: inspect.Parameter, annotation: Any) -> Parameter:
    optional = parameter.default is not parameter.empty
    plain = _without_metadata(annotation)
    if isinstance(plain, type) and issubclass(plain, Message) and plain not in BARE:
        return Parameter(parameter.name, "event", plain, optional)
    if plain is Context:
        return Parameter(parameter.name, "context", plain, optional)
    if plain is Connection:
        return Parameter(parameter.name, "connection", plain, optional)
    if _is_session(named := _without_alias(annotation)):
        return Parameter(parameter.name, "session", named, optional)
    return Parameter(parameter.name, "dependency", _without_none(annotation), optional)


def _is_session(annotation: Any) -> bool:
    # SQLAlchemy is not imported for this: whoever annotates with its class has it. Annotated[AsyncSession, "name"] is
    # somebody else's session, provided by the lifespan.
    alchemy = sys.modules.get("sqlalchemy.ext.asyncio")
    return alchemy is not None and isinstance(annotation, type) and issubclass(annotation, alchemy.AsyncSession)


def _without_none(annotation: Any) -> Any:
    # `cards: Cards | None = None` asks for Cards, and gets along without.
    choices = [each for each in typing.get_args(annotation) if each is not NoneType]
    is_union = typing.get_origin(annotation) in {typing.Union, UnionType}
    return choices[0] if is_union and len(choices) == 1 else annotation


def _without_metadata(annotation: Any) -> Any:
    annotation = _without_alias(annotation)
    if typing.get_origin(annotation) is typing.Annotated:
        return _without_metadata(typing.get_args(annotation)[0])
    return annotation


def _without_alias(annotation: Any) -> Any:
    return _without_alias(annotation.__value__) if type(annotation).__name__ == "TypeAliasType" else annotation
