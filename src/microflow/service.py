"""A service: what its author wrote, collected and checked when it is built, before any event arrives."""

from __future__ import annotations

import importlib
import inspect
import re
import sys
import typing
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, TypeAlias

from microflow.connection import Connection
from microflow.context import Context
from microflow.emits import classes_of, read_emits
from microflow.errors import DefinitionError
from microflow.events import BARE, Message, check_event_class, check_topic, options_of
from microflow.handlers import MARKS, Handler, Mark, Parameter, Trigger
from microflow.retries import Retry, RetryPolicy

Lifespan: TypeAlias = Callable[[], AbstractAsyncContextManager[Mapping[Any, Any]]]
CallNext: TypeAlias = Callable[[Any, Context], Awaitable[Any]]
Middleware: TypeAlias = Callable[[CallNext, Any, Context], Awaitable[Any]]
Start: TypeAlias = Literal["earliest", "latest"] | datetime


class Service:
    """A service: the handlers of its modules, its tables, and what its handlers are given.

    Only remembers its arguments and the module it stands in. `name` is the consumer group and the name of its
    database, by default the module's; `modules` are further modules (or their names) with handlers; `tables` is a
    file of SQL or a folder of numbered ones, relative to the module's file; `lifespan` provides what handlers ask
    for; `middleware` is called around every execution, the first one outermost; `retry` is the policy of handlers
    that have none; `start` is where topics without a stored offset are read from: `earliest`, `latest` or an instant.
    """

    def __init__(
        self,
        name: str | None = None,
        *,
        modules: Sequence[ModuleType | str] = (),
        tables: str | Path | None = None,
        lifespan: Lifespan | None = None,
        middleware: Sequence[Middleware] = (),
        retry: RetryPolicy | None = None,
        start: Start = "earliest",
    ) -> None:
        frame = sys._getframe(1)
        self.name = name
        self.module: str = frame.f_globals.get("__name__", "__main__")
        self.file = frame.f_code.co_filename
        self.where = f"{frame.f_code.co_filename}:{frame.f_lineno}"
        self.modules = tuple(modules)
        self.tables = tables
        self.lifespan = lifespan
        self.middleware = tuple(middleware)
        self.retry = retry
        self.start = start

    @classmethod
    def of_module(cls, module: ModuleType) -> Service:
        """The service that a module without a `Service` is: named after it, with nothing but its handlers."""
        service = cls()
        service.module = module.__name__
        service.file = module.__file__ or module.__name__
        service.where = f"{service.file}:1"
        return service


@dataclass(frozen=True, slots=True)
class Definition:
    """A built service: nothing in it can be misunderstood any more.

    `topics` are the topics it reads, each with the types it handles there; `emitted` the topic of each event class.
    """

    name: str
    handlers: tuple[Handler, ...]
    topics: Mapping[str, frozenset[str]]
    emitted: Mapping[type[Message], str]
    tables: Path | None
    lifespan: Lifespan | None
    middleware: tuple[Middleware, ...]
    retry: RetryPolicy | None
    start: Start
    where: str


def build(service: Service, *, topics: Mapping[str, str] | None = None) -> Definition:
    """Collect a service's handlers and check them. `topics` records the topic of types that do not say it themselves.

    Raises DefinitionError with the file and line of what cannot work.
    """
    recorded = topics or {}
    name = _service_name(service)
    handlers = tuple(_handlers(service, recorded))
    if not handlers:
        raise DefinitionError(
            f"The service {name} has no handlers.",
            where=service.where,
            why=f"None of its modules ({', '.join(_module_names(service))}) has a function marked with @on.",
            fix='@on("OrderAccepted")\n  async def take_payment(order: OrderAccepted) -> PaymentReceived: …',
        )
    read: dict[str, set[str]] = {}
    for handler in handlers:
        for trigger in handler.triggers:
            read.setdefault(trigger.topic, set()).add(trigger.event_type)
    emitted = {event: topic_of(event, recorded) for handler in handlers for event in classes_of(handler.emits)}
    return Definition(
        name=name,
        handlers=handlers,
        topics={topic: frozenset(types) for topic, types in read.items()},
        emitted=emitted,
        tables=_tables(service),
        lifespan=service.lifespan,
        middleware=_middleware(service),
        retry=_service_retry(service),
        start=_start(service),
        where=service.where,
    )


def topic_of(event: type[Message], recorded: Mapping[str, str]) -> str:
    """Where an event class is published: its own keyword, else what is recorded for its type, else the type's name."""
    options = options_of(event)
    topic = options.topic or recorded.get(options.type) or options.type
    check_topic(topic, where=options.where)
    return topic


# ── the service itself ────────────────────────────────────────────────────────────────────────────────────────────

_NAME = re.compile(r"[a-z][a-z0-9_-]{0,47}")
NOT_A_NAME = {"app", "main", "__main__", "service", "services"}


def _service_name(service: Service) -> str:
    name = service.name if service.name is not None else service.module.rsplit(".", 1)[-1]
    if service.name is None and name in NOT_A_NAME:
        raise DefinitionError(
            f"This service has no name: a module called {name} says nothing about it.",
            where=service.where,
            why="The name is its consumer group and its database: it must stay the same.",
            fix='service = Service("payments")',
        )
    if not _NAME.fullmatch(name):
        raise DefinitionError(
            f"{name!r} is no name for a service.",
            where=service.where,
            why="A name is 1 to 48 of a-z, 0-9, '_' and '-', and begins with a letter.",
            fix='service = Service("payments")',
        )
    return name


def _tables(service: Service) -> Path | None:
    if service.tables is None:
        return None
    path = Path(service.file).parent / service.tables
    if not path.exists():
        raise DefinitionError(
            f"tables={str(service.tables)!r}: there is no such file or folder.",
            where=service.where,
            why=f"It is looked for beside the service's module, at {path}.",
        )
    return path


def _middleware(service: Service) -> tuple[Middleware, ...]:
    for middleware in service.middleware:
        if not callable(middleware):
            raise DefinitionError(
                f"middleware holds {middleware!r}, which cannot be called.",
                where=service.where,
                fix="async def timed(call_next, event, context): return await call_next(event, context)",
            )
    return service.middleware


def _service_retry(service: Service) -> RetryPolicy | None:
    if service.retry is None or isinstance(service.retry, Retry | Mapping):
        return service.retry
    raise DefinitionError(
        f"retry={service.retry!r} is no retry policy.", where=service.where, fix="retry=Retry(attempts=5)"
    )


def _start(service: Service) -> Start:
    start = service.start
    if start in ("earliest", "latest") or (isinstance(start, datetime) and start.tzinfo is not None):
        return start
    raise DefinitionError(
        f"start={start!r} is no place to start from.",
        where=service.where,
        why="It is 'earliest', 'latest', or an instant with its time zone.",
        fix='start="earliest"',
    )


def _module_names(service: Service) -> list[str]:
    return [service.module, *(each if isinstance(each, str) else each.__name__ for each in service.modules)]


# ── its handlers ──────────────────────────────────────────────────────────────────────────────────────────────────


def _handlers(service: Service, recorded: Mapping[str, str]) -> Iterable[Handler]:
    by_name: dict[str, Handler] = {}
    for function in _functions(service):
        handler = _handler(function, recorded)
        twin = by_name.setdefault(handler.name, handler)
        if twin is not handler:
            raise DefinitionError(
                f"Two handlers are called {handler.name}: here and at {twin.where}.",
                where=handler.where,
                why="A handler's name is its identity: what it has done is remembered under it.",
                fix=f'Rename one, or say @on("…", name="{handler.name}_again").',
            )
    return by_name.values()


def _functions(service: Service) -> Iterable[Callable[..., Any]]:
    seen: set[int] = set()
    for module in _modules(service):
        for function in vars(module).values():
            marked = inspect.isfunction(function) and hasattr(function, MARKS)
            if marked and function.__module__ == module.__name__ and id(function) not in seen:
                seen.add(id(function))
                yield function


def _modules(service: Service) -> Iterable[ModuleType]:
    for module in (service.module, *service.modules):
        if isinstance(module, ModuleType):
            yield module
            continue
        try:
            yield sys.modules.get(module) or importlib.import_module(module)
        except ModuleNotFoundError as cause:
            if cause.name is None or not module.startswith(cause.name):
                raise
            raise DefinitionError(
                f"modules names {module!r}, and there is no such module.", where=service.where, fix="modules=[…]"
            ) from cause


def _handler(function: Callable[..., Any], recorded: Mapping[str, str]) -> Handler:
    marks: tuple[Mark, ...] = getattr(function, MARKS)
    mark = marks[0]
    code = inspect.unwrap(function).__code__
    where = f"{code.co_filename}:{code.co_firstlineno}"
    hints = _hints(function, where)
    parameters = tuple(_parameters(function, hints, where))
    event_class = next(parameter.key for parameter in parameters if parameter.asks_for == "event")
    is_async = inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function)
    if not is_async and any(parameter.asks_for == "connection" for parameter in parameters):
        raise DefinitionError(
            f"{function.__name__} is a plain def and asks for Connection.",
            where=where,
            why="A plain function runs in a thread, and the transaction lives on the event loop.",
            fix=f"Write `async def {function.__name__}`, or use context.write(…).",
        )
    emits = read_emits(hints["return"], function=function.__name__, where=where)
    for event in (event_class, *classes_of(emits)):
        check_event_class(event)
    return Handler(
        name=mark.name or function.__name__,
        function=function,
        triggers=tuple(_trigger(each, event_class, recorded) for each in marks),
        event_class=event_class,
        parameters=parameters,
        emits=emits,
        retry=mark.retry,
        deadline=mark.deadline,
        order=mark.order,
        halt=mark.halt,
        is_async=is_async,
        where=where,
    )


def _trigger(mark: Mark, event_class: type[Message], recorded: Mapping[str, str]) -> Trigger:
    topic = mark.topic or options_of(event_class).topic or recorded.get(mark.event_type) or mark.event_type
    check_topic(topic, where=mark.where)
    return Trigger(mark.event_type, topic)


def _hints(function: Callable[..., Any], where: str) -> dict[str, Any]:
    try:
        hints = typing.get_type_hints(function, include_extras=True)
    except (NameError, AttributeError, TypeError) as cause:
        raise DefinitionError(
            f"An annotation of {function.__name__} cannot be read: {cause}.",
            where=where,
            why="The names in it must be importable when the service starts, not under TYPE_CHECKING only.",
        ) from cause
    if "return" not in inspect.signature(function).parameters and "return" not in hints:
        raise DefinitionError(
            f"{function.__name__} does not say what it emits.",
            where=where,
            fix="Annotate it: -> PaymentReceived | PaymentDeclined, or -> None if it emits nothing.",
        )
    return hints


def _parameters(function: Callable[..., Any], hints: Mapping[str, Any], where: str) -> Iterable[Parameter]:
    events = 0
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind in {parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD, parameter.POSITIONAL_ONLY}:
            raise DefinitionError(
                f"{function.__name__} takes {parameter}, and a handler's parameters are given by name.",
                where=where,
                fix="Name each parameter and annotate it.",
            )
        if parameter.name not in hints:
            raise DefinitionError(
                f"The parameter {parameter.name!r} of {function.__name__} has no annotation.",
                where=where,
                why="The annotation says what is passed: the event, Context, Connection, or what lifespan provides.",
                fix=f"{parameter.name}: OrderAccepted",
            )
        asked = _parameter(parameter, hints[parameter.name])
        events += asked.asks_for == "event"
        yield asked
    if events != 1:
        raise DefinitionError(
            f"{function.__name__} has {events or 'no'} parameters that are events, and needs exactly one.",
            where=where,
            fix=f"def {function.__name__}(order: OrderAccepted, …), where class OrderAccepted(Event).",
        )


def _parameter(parameter: inspect.Parameter, annotation: Any) -> Parameter:
    optional = parameter.default is not parameter.empty
    if isinstance(annotation, type) and issubclass(annotation, Message) and annotation not in BARE:
        return Parameter(parameter.name, "event", annotation, optional)
    if annotation is Context:
        return Parameter(parameter.name, "context", annotation, optional)
    if annotation is Connection:
        return Parameter(parameter.name, "connection", annotation, optional)
    return Parameter(parameter.name, "dependency", annotation, optional)


DEFAULT_DEADLINE = timedelta(seconds=60)
