"""`@on`: a function becomes the handler of an event. The mark registers nothing; a service collects it when built."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal, TypeVar

from microflow.emits import Emits
from microflow.errors import DefinitionError
from microflow.events import Message, check_topic, options_of
from microflow.retries import Order, Retry, RetryPolicy

MARKS = "__microflow_marks__"
HandlerFunction = TypeVar("HandlerFunction", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class Mark:
    """What `@on` was given, and where it stands."""

    event_type: str
    event_class: type[Message] | None
    topic: str | None
    name: str | None
    retry: RetryPolicy | None
    deadline: timedelta | None
    order: Order
    halt: bool
    where: str


def on(
    event: str | type[Message],
    *,
    topic: str | None = None,
    name: str | None = None,
    retry: RetryPolicy | None = None,
    deadline: timedelta | None = None,
    order: Order = "key",
    halt: bool = False,
) -> Callable[[HandlerFunction], HandlerFunction]:
    """Mark a function as the handler of an event. The function is returned unchanged.

    `event` is the type on the wire, or a class whose type it is. `topic` is where it is read, if not the class's own
    or the type's name. `name` is the handler's identity in the service's database, by default the function's name:
    keep it when you rename the function. `retry` is a `Retry`, or a mapping from exception classes to `Retry`s.
    `deadline` is the longest an execution may take. `order` says what waits while an event of a key is parked;
    with `halt`, a dead letter stops its key until it is redriven.

    Raises DefinitionError for arguments that make no sense.
    """
    frame = sys._getframe(1)
    where = f"{frame.f_code.co_filename}:{frame.f_lineno}"
    mark = Mark(
        event_type=event if isinstance(event, str) else options_of(_event_class(event, where)).type,
        event_class=None if isinstance(event, str) else event,
        topic=topic,
        name=name,
        retry=_retry(retry, where),
        deadline=_deadline(deadline, where),
        order=order,
        halt=halt,
        where=where,
    )
    if topic is not None:
        check_topic(topic, where=where)
    if order not in ("key", "handler", "none"):
        raise DefinitionError(f"order={order!r} is none of key, handler, none.", where=where, fix='order="key"')

    def mark_function(function: HandlerFunction) -> HandlerFunction:
        if not inspect.isfunction(function):
            raise DefinitionError("@on marks functions.", where=where, fix='@on("OrderAccepted")\nasync def …')
        setattr(function, MARKS, (mark, *getattr(function, MARKS, ())))
        return function

    return mark_function


def _event_class(event: Any, where: str) -> type[Message]:
    if callable(event) and not isinstance(event, type):
        raise DefinitionError("@on needs the name of an event.", where=where, fix='@on("OrderAccepted")')
    if not (isinstance(event, type) and issubclass(event, Message)):
        raise DefinitionError(f"@on({event!r}) names no event.", where=where, fix='@on("OrderAccepted")')
    return event


def _retry(retry: Any, where: str) -> RetryPolicy | None:
    if retry is None or isinstance(retry, Retry):
        return retry
    if isinstance(retry, dict):
        for error, policy in retry.items():
            if not (isinstance(error, type) and issubclass(error, Exception) and isinstance(policy, Retry)):
                raise DefinitionError(
                    f"retry maps {error!r} to {policy!r}.",
                    where=where,
                    why="It maps classes of exceptions to Retry(…) or Retry.never().",
                    fix="retry={TimeoutError: Retry(attempts=10), ValueError: Retry.never()}",
                )
        return retry
    raise DefinitionError(
        f"retry={retry!r} is no retry policy.",
        where=where,
        fix="retry=Retry(attempts=5, first_delay=timedelta(seconds=1))",
    )


def _deadline(deadline: Any, where: str) -> timedelta | None:
    if deadline is None or (isinstance(deadline, timedelta) and deadline > timedelta(0)):
        return deadline
    raise DefinitionError(
        f"deadline={deadline!r} is no span of time.", where=where, fix="deadline=timedelta(seconds=30)"
    )


@dataclass(frozen=True, slots=True)
class Trigger:
    """What starts a handler: a type on the wire, read from a topic."""

    event_type: str
    topic: str


@dataclass(frozen=True, slots=True)
class Parameter:
    """What a parameter of a handler asks for. `key` is what `lifespan` must provide, for a dependency."""

    name: str
    asks_for: Literal["event", "context", "connection", "dependency"]
    key: Any
    optional: bool


@dataclass(frozen=True, slots=True)
class Handler:
    """A handler as its service built it: everything that running it needs to know."""

    name: str
    function: Callable[..., Any]
    triggers: tuple[Trigger, ...]
    event_class: type[Message]
    parameters: tuple[Parameter, ...]
    emits: Emits
    retry: RetryPolicy | None
    deadline: timedelta | None
    order: Order
    halt: bool
    is_async: bool
    where: str

    @property
    def asks_for_connection(self) -> bool:
        return any(parameter.asks_for == "connection" for parameter in self.parameters)
