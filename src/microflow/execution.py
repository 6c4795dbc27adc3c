"""One execution: decode the event, give the handler what it asks for, take what it emits. Nothing is committed here."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
import inspect
import logging
import threading
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from datetime import timedelta
from typing import Any

from microflow.context import Context, current
from microflow.decoding import decode
from microflow.deliveries import Delivery, Succeeded
from microflow.emits import drain, drain_async, emitted, fits
from microflow.envelopes import Sealed, seal_emitted
from microflow.errors import ContractError, DefinitionError, MicroflowError
from microflow.events import Message, options_of
from microflow.frames import place_waiting
from microflow.handlers import Handler, Parameter
from microflow.limits import Limits
from microflow.places import place_of
from microflow.ports import Clock, Transaction
from microflow.service import CallNext, Definition, Middleware
from microflow.tracing import Attempt, Tracing

logger = logging.getLogger("microflow.execution")

ROOM_FOR_HEADERS = 64 * 1024
"""More than those that we write ever take: no attribute that was read has more than 4 KiB."""

AT_ONCE = "at once"
"""The message of a cancellation that does not wait for threads."""


class Executor:
    """Runs the handlers of one service. `provided` is what its lifespan gave, by type."""

    def __init__(
        self,
        definition: Definition,
        *,
        provided: Mapping[Any, Any],
        clock: Clock,
        limits: Limits,
        tracing: Tracing,
        max_record_bytes: Callable[[str], int],
    ) -> None:
        self._definition = definition
        self._provided = provided
        self._clock = clock
        self._limits = limits
        self._tracing = tracing
        self._max_record_bytes = max_record_bytes
        for handler in definition.handlers:
            _check_provided(handler, provided)

    async def execute(
        self,
        handler: Handler,
        delivery: Delivery,
        *,
        attempt: int,
        trace: Attempt | None = None,
        transaction: Transaction | None = None,
    ) -> Succeeded:
        """Run a handler once, inside `transaction` if it asks for that; whatever it raises is an attempt that failed.
        This task is the attempt's own from now on.

        Raises ContractError if it emits what it does not declare, DecodeError if its event cannot be read.
        """
        if trace is not None:
            trace.enter()
        event = decode(handler.event_class, delivery.record.value, delivery.envelope.content_type)
        context = self._context(handler, delivery, attempt)
        current.set(context)
        try:
            if self._definition.middleware or handler.asks_for_more:
                value = await self._call_around(handler, transaction, event, context)
            else:
                value = await self._call(handler, transaction, None, event, context)
                context.writes.closed = True
        except SystemExit as stop:  # asyncio would let it end the process, and the next one, and the one after
            raise MicroflowError(f"{handler.name} called sys.exit({stop.code}).", where=handler.where) from stop
        events = emitted(value, handler.emits, function=handler.function.__name__, where=handler.where)
        return Succeeded(self._seal(handler, delivery, events, context, trace), tuple(context.writes.kept))

    def _context(self, handler: Handler, delivery: Delivery, attempt: int) -> Context:
        envelope, record = delivery.envelope, delivery.record
        return Context(
            service=self._definition.name,
            handler=handler.name,
            event_id=envelope.id,
            correlation_id=envelope.correlation_id,
            causation_id=envelope.causation_id,
            key=None if record.key is None else record.key.decode(errors="replace"),
            attempt=attempt,
            occurred_at=envelope.time,
            now=self._clock.now(),
            record=record,
            digest=envelope.digest,
        )

    async def _call_around(
        self, handler: Handler, transaction: Transaction | None, event: Message, context: Context
    ) -> Any:
        """Call a handler inside of the middleware, and of what it asks for that has to be left again."""
        async with AsyncExitStack() as entered:
            call: CallNext = functools.partial(self._call, handler, transaction, entered)
            swallowed = _Swallowed()
            for middleware in reversed(self._definition.middleware):
                call = functools.partial(swallowed.watch, middleware, call)
            value = await call(event, context)
            context.writes.closed = True
        if swallowed.by is not None and value is None and not fits(None, handler.emits):
            raise _forgot_to_return(swallowed.by, handler)
        return value

    async def _call(
        self,
        handler: Handler,
        transaction: Transaction | None,
        entered: AsyncExitStack | None,
        event: Message,
        context: Context,
    ) -> Any:
        arguments: dict[str, Any] = {}
        sessions: list[Any] = []
        for parameter in handler.parameters:
            match parameter.asks_for:
                case "event":
                    arguments[parameter.name] = event
                case "context":
                    arguments[parameter.name] = context
                case "connection":
                    assert transaction is not None
                    arguments[parameter.name] = transaction.connection
                case "session":
                    assert transaction is not None
                    assert entered is not None
                    session = await entered.enter_async_context(transaction.session(parameter.key))
                    sessions.append(session)
                    arguments[parameter.name] = session
                case "dependency":
                    assert entered is not None
                    if parameter.key in self._provided:
                        arguments[parameter.name] = await self._dependency(parameter, context, entered)
        if handler.is_async:
            value = handler.function(**arguments)
            if inspect.isawaitable(value):
                value = await value
            value = await drain_async(value, limit=self._limits.max_emitted)
            if transaction is not None and transaction.failure is None:
                for session in sessions:
                    await session.flush()  # before the kept writes; what is wrong with it is this handler's failure
            return value
        return await _in_thread(functools.partial(self._run_and_drain, handler, arguments), handler)

    async def _dependency(self, parameter: Parameter, context: Context, entered: AsyncExitStack) -> Any:
        value = self._provided[parameter.key]
        if inspect.isasyncgenfunction(value):
            return await entered.enter_async_context(contextlib.asynccontextmanager(value)(context))
        return value

    def _run_and_drain(self, handler: Handler, arguments: dict[str, Any]) -> Any:
        return drain(handler.function(**arguments), limit=self._limits.max_emitted)

    def _seal(
        self, handler: Handler, delivery: Delivery, events: list[Message], context: Context, trace: Attempt | None
    ) -> tuple[Sealed, ...]:
        ordinals: dict[str, int] = {}
        sealed = []
        carried = self._tracing.carry(delivery.record) if trace is None and events else ()
        for event in events:
            event_type = options_of(type(event)).type
            ordinal = ordinals.get(event_type, 0)
            ordinals[event_type] = ordinal + 1
            each = seal_emitted(
                event,
                cause=delivery.envelope,
                cause_key=delivery.record.key,
                service=self._definition.name,
                handler=handler.name,
                topic=self._definition.emitted[type(event)],
                ordinal=ordinal,
                now=context.now,
            )
            if trace is not None:
                each = trace.create(each)
            elif carried:
                each = each._replace(headers=each.headers + carried)
            check_size(each, self._max_record_bytes(each.topic), where=handler.where)
            sealed.append(each)
        return tuple(sealed)


class _Swallowed:
    """Which middleware was given a result and returned none."""

    def __init__(self) -> None:
        self.by: Middleware | None = None

    async def watch(self, middleware: Middleware, call_next: CallNext, event: Any, context: Context) -> Any:
        result = None

        async def remember(event: Any, context: Context) -> Any:
            nonlocal result
            result = await call_next(event, context)
            return result

        value = await middleware(remember, event, context)
        if value is None and result is not None:
            self.by = self.by or middleware
        return value


def _forgot_to_return(middleware: Middleware, handler: Handler) -> ContractError:
    return ContractError(
        f"The middleware {getattr(middleware, '__qualname__', repr(middleware))} returned None; "
        f"{handler.name} had returned what it emits.",
        where=place_of(middleware),
        why="What a middleware returns takes the place of the handler's result. Nothing was written.",
        fix="return await call_next(event, context)",
    )


def check_size(sealed: Sealed, max_record_bytes: int, *, where: str | None) -> None:
    """Raise ContractError for an event that the log would never take: at the relay it would block its key for ever."""
    size = len(sealed.value) + len(sealed.key or b"")
    if 2 * size + ROOM_FOR_HEADERS <= max_record_bytes:  # the key is in the headers, too
        return
    for name, value in sealed.headers:
        size += len(name) + len(value)
    if size > max_record_bytes:
        raise ContractError(
            f"{sealed.type} has {size:,} bytes, and the log takes at most {max_record_bytes:,}.",
            where=where,
            fix="Put the large part somewhere else and let the event say where. Nothing was written.",
        )


async def _in_thread(function: Callable[[], Any], handler: Handler) -> Any:
    """Run a plain function in a thread of its own; a cancellation is passed on once the thread has ended, so that its
    key stays closed; at the end of the process (`AT_ONCE`) at once.

    The thread is a daemon: one that never ends keeps its key closed, but does not keep the process from exiting.
    """
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[Any] = loop.create_future()
    context = contextvars.copy_context()

    def report(set_it: Callable[[Any], None], value: Any) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(_unless_done, ended, set_it, value)

    def work() -> None:
        try:
            value = context.run(function)
        except BaseException as error:
            report(ended.set_exception, RuntimeError("StopIteration") if isinstance(error, StopIteration) else error)
        else:
            report(ended.set_result, value)

    threading.Thread(target=work, name=f"microflow-{handler.name}", daemon=True).start()
    try:
        return await asyncio.shield(ended)
    except asyncio.CancelledError as cancelled:
        if not ended.done() and cancelled.args != (AT_ONCE,):
            logger.warning("%s  %s is past its end; its key waits for its thread", handler.where, handler.name)
            await asyncio.wait([ended])
        if ended.done():
            ended.exception()
        raise


def _unless_done(ended: asyncio.Future[Any], set_it: Callable[[Any], None], value: Any) -> None:
    if not ended.done():
        set_it(value)


def _check_provided(handler: Handler, provided: Mapping[Any, Any]) -> None:
    for parameter in handler.parameters:
        if parameter.asks_for != "dependency" or parameter.optional or parameter.key in provided:
            continue
        names = ", ".join(sorted(_name(key) for key in provided)) or "nothing"
        raise DefinitionError(
            f"{handler.name} asks for {parameter.name}: {_name(parameter.key)}, and nobody provides it.",
            where=handler.where,
            why=f"The service's lifespan provides {names}.",
            fix=f"Let it: yield {{{_name(parameter.key)}: …}}, in Service(…, lifespan=…).",
        )


def _name(key: Any) -> str:
    return getattr(key, "__name__", None) or str(key)


def is_cancelled() -> bool:
    """Whether somebody wants the current task to end; otherwise a CancelledError is the handler's own."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


async def watch_wait(task: asyncio.Task[Any], handler: Handler, clock: Clock, patience: timedelta) -> None:
    """Log where a handler that holds the transaction open is waiting for somebody else."""
    await clock.sleep(patience)
    if not task.done():
        logger.warning(
            "%s  %s holds its transaction open and waits here for more than %g s; call the outside world from a "
            "handler that does not ask for Connection",
            place_waiting(task) or handler.where,
            handler.name,
            patience.total_seconds(),
        )
