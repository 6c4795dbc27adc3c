"""`@on`: a function becomes the handler of an event. The mark registers nothing; a service collects it when built."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from types import FrameType
from typing import Any, Literal, Never, TypeVar

from microflow.emits import Emits
from microflow.errors import DefinitionError, nearest, refuse_unknown
from microflow.events import BARE, Message, check_topic, options_of
from microflow.keywords import is_type_name
from microflow.places import place_of
from microflow.retries import Order, RetryPolicy, check_policy

MARKS = "__microflow_marks__"
HandlerFunction = TypeVar("HandlerFunction", bound=Callable[..., Any])

KEYWORDS = ("topic", "name", "retry", "deadline", "order", "halt")
ORDERS: tuple[Order, ...] = ("key", "handler", "none")
EXAMPLE = '@on("OrderAccepted")\n  async def take_payment(order: OrderAccepted) -> PaymentReceived: ...'


@dataclass(frozen=True, slots=True)
class Mark:
    """What `@on` was given, and where it stands. None in `order` and `halt`: not given."""

    event_type: str
    event_class: type[Message] | None
    topic: str | None
    name: str | None
    retry: RetryPolicy | None
    deadline: timedelta | None
    order: Order | None
    halt: bool | None
    module: str
    where: str


def on(
    event: str | type[Message],
    *,
    topic: str | None = None,
    name: str | None = None,
    retry: RetryPolicy | None = None,
    deadline: timedelta | None = None,
    order: Order | None = None,
    halt: bool | None = None,
    **misspelt: Never,
) -> Callable[[HandlerFunction], HandlerFunction]:
    """Mark a function as the handler of an event. The function is returned unchanged.

    `event` is the type on the wire, or a class whose type it is. `topic` is where it is read, if not the class's own
    or the type's name. `name` is the handler's identity in the service's database, by default the function's name:
    keep it when you rename the function. `retry` is a `Retry`, or a mapping from exception classes to `Retry`s.
    `deadline` is the longest an execution may take. `order` says what waits while an event of a key is parked: its
    whole `key` (the default), this `handler` only, or `none`; with `halt`, a dead letter stops its key until it is
    redriven. Several `@on` over one function make it the handler of several events.

    Raises DefinitionError for arguments that make no sense.
    """
    frame = sys._getframe(1)
    where = f"{frame.f_code.co_filename}:{frame.f_lineno}"
    refuse_unknown("@on", list(misspelt), KEYWORDS, where=where, example='@on("OrderAccepted", name="take_payment")')
    mark = Mark(
        event_type=_event_type(event, where),
        event_class=None if isinstance(event, str) else event,
        topic=_topic(topic, where),
        name=_name(name, where),
        retry=check_policy(retry, where=where),
        deadline=_deadline(deadline, where),
        order=_order(order, where),
        halt=halt,
        module=frame.f_globals.get("__name__", "__main__"),
        where=where,
    )

    def mark_function(function: HandlerFunction) -> HandlerFunction:
        _check_function(function, where)
        _refuse_shadowing(function, sys._getframe(1))
        setattr(function, MARKS, (mark, *getattr(function, MARKS, ())))
        return function

    return mark_function


# ── what @on was given ────────────────────────────────────────────────────────────────────────────────────────────


def _event_type(event: Any, where: str) -> str:
    if isinstance(event, str):
        if is_type_name(event):
            return event
        raise DefinitionError(f"@on({event!r}) names no event.", where=where, fix='@on("OrderAccepted")')
    if inspect.isroutine(event):
        raise DefinitionError(
            f"@on stands over {event.__name__} without saying which event it handles.", where=where, fix=EXAMPLE
        )
    if not (isinstance(event, type) and issubclass(event, Message)):
        named = event.__name__ if isinstance(event, type) else repr(event)
        raise DefinitionError(
            f"@on({named}) names no event.",
            where=where,
            why="It takes the type on the wire as text, or an Event class.",
            fix=f'@on("{named}")' if isinstance(event, type) else '@on("OrderAccepted")',
        )
    if event in BARE:
        raise DefinitionError(
            f"@on({event.__name__}) names no particular event.", where=where, fix='@on("OrderAccepted")'
        )
    return options_of(event).type


def _topic(topic: Any, where: str) -> str | None:
    if topic is not None:
        check_topic(str(topic), where=where)
    return None if topic is None else str(topic)


def _name(name: Any, where: str) -> str | None:
    if name is None or (isinstance(name, str) and is_name(name)):
        return name
    raise DefinitionError(
        f"name={name!r} is no name for a handler.",
        where=where,
        why="A name is 1 to 100 letters, digits, '_', '-' and '.'; what the handler has done is remembered under it.",
        fix='name="take_payment"',
    )


_NAME = re.compile(r"[\w.-]{1,100}")


def is_name(name: str) -> bool:
    """Whether a text can be a handler's name."""
    return _NAME.fullmatch(name) is not None


def _deadline(deadline: Any, where: str) -> timedelta | None:
    if deadline is None or (isinstance(deadline, timedelta) and deadline > timedelta(0)):
        return deadline
    raise DefinitionError(
        f"deadline={deadline!r} is no span of time.", where=where, fix="deadline=timedelta(seconds=30)"
    )


def _order(order: Any, where: str) -> Order | None:
    if order is None:
        return None
    for known in ORDERS:
        if order == known:
            return known
    raise DefinitionError(
        f"order={order!r} is none of {', '.join(ORDERS)}.",
        where=where,
        fix=f'order="{nearest(str(order), ORDERS) or "key"}"',
    )


# ── what @on stands over ──────────────────────────────────────────────────────────────────────────────────────────


def _check_function(function: Any, where: str) -> None:
    if isinstance(function, type):
        what = f"the class {function.__name__}"
    elif not inspect.isfunction(function):
        what = f"{type(function).__name__} {getattr(function, '__name__', '')}".strip()
    elif len(path := function.__qualname__.split(".")) > 1 and path[-2] != "<locals>":
        what = f"the method {'.'.join(path[-2:])}"
    else:
        return
    raise DefinitionError(
        f"@on stands over {what}, and a handler is a function of a module.",
        where=where,
        why="What it needs beside the event is a parameter, provided by the service's lifespan.",
        fix=EXAMPLE,
    )


def _refuse_shadowing(function: Callable[..., Any], frame: FrameType) -> None:
    # The second `def` takes the first one's name in the module, so that a service could never see that it lost one.
    earlier = frame.f_locals.get(function.__name__)
    if frame.f_code.co_name != "<module>" or not inspect.isfunction(earlier) or not hasattr(earlier, MARKS):
        return
    here, there = place_of(function), place_of(earlier)
    same_file = here.rpartition(":")[0] == there.rpartition(":")[0]
    if here != there and same_file and not _is_reloading(frame):
        raise DefinitionError(
            f"Two handlers are called {function.__name__}: here and at {there}.",
            where=here,
            why="The second takes the place of the first, which would never run.",
            fix=f"Rename one of them: {function.__name__}_again",
        )


def _is_reloading(frame: FrameType | None) -> bool:
    # importlib.reload runs the module's new text over its old names.
    while frame is not None:
        if frame.f_code.co_name == "reload" and frame.f_globals.get("__name__") == "importlib":
            return True
        frame = frame.f_back
    return False


@dataclass(frozen=True, slots=True)
class Trigger:
    """What starts a handler: a type on the wire, read from a topic."""

    event_type: str
    topic: str

    @property
    def in_words(self) -> str:
        """The type, and the topic if that has another name."""
        return self.event_type if self.topic == self.event_type else f"{self.event_type} on {self.topic}"


@dataclass(frozen=True, slots=True)
class Parameter:
    """What a parameter of a handler asks for.

    `key` is what `lifespan` must provide, for a dependency, and the session's class, for an SQLAlchemy session.
    """

    name: str
    asks_for: Literal["event", "context", "connection", "session", "dependency"]
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
    asks_for_connection: bool = field(init=False)
    """Whether it runs inside the transaction: it asks for that one's connection, or for a session on it."""
    asks_for_more: bool = field(init=False)
    """Whether it asks for more than its event and its context."""

    def __post_init__(self) -> None:
        asked = {parameter.asks_for for parameter in self.parameters}
        object.__setattr__(self, "asks_for_connection", not asked.isdisjoint(("connection", "session")))
        object.__setattr__(self, "asks_for_more", not asked <= {"event", "context"})
