"""A service: what its author wrote, collected and checked when it is built, before any event arrives."""

from __future__ import annotations

import importlib
import inspect
import re
import sys
import traceback
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, Never, TypeAlias

from microflow.context import Context
from microflow.emits import classes_of
from microflow.errors import DefinitionError, MicroflowError, nearest, refuse_unknown
from microflow.events import Message, check_topic, options_of
from microflow.handlers import MARKS, Handler
from microflow.retries import RetryPolicy, check_policy
from microflow.signatures import handler_of

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
        **misspelt: Never,
    ) -> None:
        frame = sys._getframe(1)
        self.name = name
        self.module: str = frame.f_globals.get("__name__", "__main__")
        self.file = frame.f_code.co_filename
        self.where = f"{frame.f_code.co_filename}:{frame.f_lineno}"
        # Its own names are read when it is built: it may stand at the top of its file.
        self.namespace: Mapping[str, Any] = frame.f_globals
        example = 'service = Service("payments", tables="payments.sql")'
        refuse_unknown("Service", list(misspelt), KEYWORDS, where=self.where, example=example)
        self.modules: tuple[ModuleType | str, ...] = _several(modules, "modules", 'modules=["handlers"]', self.where)
        self.tables = tables
        self.lifespan = lifespan
        self.middleware: tuple[Middleware, ...] = _several(middleware, "middleware", "middleware=[timed]", self.where)
        self.retry = retry
        self.start = start

    @classmethod
    def of_module(cls, module: ModuleType) -> Service:
        """The service that a module names, or, without one, that it is: named after it, with its handlers only.

        Raises DefinitionError if it names several.
        """
        named = [each for each in vars(module).values() if isinstance(each, cls) and each.module == module.__name__]
        if len({id(each) for each in named}) > 1:
            raise DefinitionError(
                f"{module.__name__} names {len(named)} services.", where=named[1].where, fix="Pass one."
            )
        if named:
            return named[0]
        service = cls()
        service.module = module.__name__
        service.file = getattr(module, "__file__", None) or module.__name__
        service.where = f"{service.file}:1"
        service.namespace = vars(module)
        return service


def service_of(given: Any) -> Service:
    """A `Service` itself, or the one that a module is. Raises DefinitionError for what is neither."""
    if isinstance(given, Service):
        return given
    if isinstance(given, ModuleType):
        return Service.of_module(given)
    what = f"The class {given.__name__}" if isinstance(given, type) else repr(given)
    raise DefinitionError(
        f"{what} is neither a service nor a module with handlers.",
        why="A name does not do: what runs is the object itself.",
        fix="import payments, and pass payments; or pass payments.service",
    )


KEYWORDS = ("name", "modules", "tables", "lifespan", "middleware", "retry", "start")


def _several(value: Any, word: str, example: str, where: str) -> tuple[Any, ...]:
    if isinstance(value, Iterable) and not isinstance(value, str | bytes):
        return tuple(value)
    raise DefinitionError(f"{word}={value!r} is one thing, and a list is expected.", where=where, fix=example)


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
        lifespan=_lifespan(service),
        middleware=_middleware(service),
        retry=check_policy(service.retry, where=service.where),
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
    name = service.name if service.name is not None else service.module.rpartition(".")[2]
    if service.name is None and name in NOT_A_NAME:
        raise DefinitionError(
            f"This service has no name: a module called {name} says nothing about it.",
            where=service.where,
            why="The name is its consumer group and its database: it must stay the same.",
            fix='service = Service("payments")',
        )
    return check_service_name(name, where=service.where, fix='service = Service("payments")')


def check_service_name(name: Any, *, where: str | None, fix: str) -> str:
    """A name that a service, or what publishes like one, may have. Raises DefinitionError for any other."""
    if isinstance(name, str) and _NAME.fullmatch(name):
        return name
    raise DefinitionError(
        f"{name!r} is no name for a service.",
        where=where,
        why="A name is 1 to 48 of a-z, 0-9, '_' and '-', and begins with a letter.",
        fix=fix,
    )


def _tables(service: Service) -> Path | None:
    if service.tables is None:
        return None
    tables: Any = service.tables
    if not isinstance(tables, str | Path):
        raise DefinitionError(
            f"tables={service.tables!r} is no path.", where=service.where, fix='tables="payments.sql"'
        )
    path = Path(service.file).parent / service.tables
    if not path.exists():
        near = nearest(path.name, [each.name for each in path.parent.glob("*")])
        raise DefinitionError(
            f"tables={str(service.tables)!r}: there is no such file or folder.",
            where=service.where,
            why=f"It is looked for beside the service's module, at {path}.",
            fix=f"Did you mean {near}?" if near else f"Create it, or leave tables= out: touch {path}",
        )
    if path.is_dir() and not any(path.glob("*.sql")):
        raise DefinitionError(
            f"tables={str(service.tables)!r}: the folder has no .sql files.",
            where=service.where,
            why="A folder holds numbered migrations.",
            fix=f"touch {path / '0001_create.sql'}",
        )
    return path


def _lifespan(service: Service) -> Lifespan | None:
    lifespan: Any = service.lifespan
    if lifespan is None:
        return None
    name = getattr(lifespan, "__name__", "provide")
    wrong = None
    inner = inspect.unwrap(lifespan) if callable(lifespan) else lifespan
    if isinstance(lifespan, AbstractAsyncContextManager):
        wrong = "was called already; it is called, and left, with the service", "lifespan=cards, not lifespan=cards()"
    elif not callable(lifespan):
        wrong = "cannot be called", "lifespan=cards, where cards is an @asynccontextmanager"
    elif inspect.isasyncgenfunction(lifespan) or inspect.iscoroutinefunction(lifespan):
        wrong = "is no context manager yet", f"@asynccontextmanager\n  async def {name}() -> ..."
    elif inspect.isgeneratorfunction(inner):
        wrong = "is not asynchronous", f"@asynccontextmanager\n  async def {name}() -> ..."
    elif not _takes(lifespan):
        wrong = "takes parameters, and is called without", f"async def {name}(): ..."
    if wrong is None:
        return service.lifespan
    raise DefinitionError(
        f"lifespan={getattr(lifespan, '__qualname__', repr(lifespan))} {wrong[0]}.",
        where=service.where,
        why="It is a function without parameters that gives an async context manager over a mapping.",
        fix=wrong[1],
    )


def _middleware(service: Service) -> tuple[Middleware, ...]:
    given: tuple[Any, ...] = service.middleware
    for middleware in given:
        if not callable(middleware) or not _takes(middleware, "call_next", "event", "context"):
            named = getattr(middleware, "__qualname__", repr(middleware))
            raise DefinitionError(
                f"middleware holds {named}, which cannot be called with (call_next, event, context).",
                where=service.where,
                fix="async def timed(call_next, event, context): return await call_next(event, context)",
            )
    return service.middleware


def _takes(function: Callable[..., Any], *arguments: str) -> bool:
    try:
        inspect.signature(function).bind(*arguments)
    except TypeError:
        return False
    except ValueError:  # a callable of C: it does not say what it takes
        return True
    return True


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
        handler = handler_of(function, recorded)
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
    for name, namespace in _namespaces(service):
        for function in list(namespace.values()):
            if not inspect.isfunction(function) or id(function) in seen:
                continue
            # One that was imported is a handler of the module where it was marked, not of this one.
            if any(mark.module == name for mark in getattr(function, MARKS, ())):
                seen.add(id(function))
                yield function


def _namespaces(service: Service) -> Iterable[tuple[str, Mapping[str, Any]]]:
    yield service.module, service.namespace
    for module in service.modules:
        if isinstance(module, str):
            module = _imported(module, service)
        if not isinstance(module, ModuleType):
            raise DefinitionError(
                f"modules holds {module!r}, which is no module.", where=service.where, fix='modules=["shop.handlers"]'
            )
        yield module.__name__, vars(module)


def _imported(module: str, service: Service) -> ModuleType:
    try:
        return sys.modules.get(module) or importlib.import_module(module)
    except MicroflowError:
        raise
    except ModuleNotFoundError as cause:
        if cause.name is None or not f"{module}.".startswith(f"{cause.name}."):
            raise _broken(module, cause, service) from cause
        near = nearest(module, [path.stem for path in Path(service.file).parent.glob("*.py")])
        raise DefinitionError(
            f"modules names {module!r}, and there is no such module.",
            where=service.where,
            why=f"There is no {cause.name} where Python looks for modules." if cause.name != module else None,
            fix=f"Did you mean {near!r}?" if near else 'For example: modules=["shop.handlers"]',
        ) from cause
    except Exception as cause:
        raise _broken(module, cause, service) from cause


def _broken(module: str, cause: Exception, service: Service) -> DefinitionError:
    return DefinitionError(
        f"The module {module} cannot be imported: {type(cause).__name__}: {cause}",
        where=_place_of_error(cause) or service.where,
        why=f"It is named in modules= at {service.where}.",
        fix=f"python -c 'import {module}'",
    )


def _place_of_error(error: Exception) -> str | None:
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}:{error.lineno}"
    places = [f"{frame.filename}:{frame.lineno}" for frame in traceback.extract_tb(error.__traceback__)]
    return next((place for place in reversed(places) if not place.startswith(("<", __file__))), None)
