"""What a handler may know of the event it handles, and the writes it leaves for its transaction."""

from __future__ import annotations

import logging
import sys
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import datetime

from microflow import ids
from microflow.errors import MicroflowError
from microflow.records import Record


@dataclass(frozen=True, slots=True)
class Write:
    """A statement that is executed in the handler's transaction, after it returned. `file` and `line` called for it."""

    sql: str
    args: tuple[object, ...]
    file: str = field(default="", compare=False, repr=False)
    line: int = field(default=0, compare=False, repr=False)


@dataclass(slots=True)
class Writes:
    """The writes of one execution; closed when its handler has returned."""

    kept: list[Write] = field(default_factory=list)
    closed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """One execution of one handler for one event.

    `attempt` counts from 1. `now` is frozen when the attempt begins; `occurred_at` is the event's own time. `key` is
    its partition key as text, `record` its bytes with topic, partition, offset, headers and timestamp.
    """

    service: str
    handler: str
    event_id: str
    correlation_id: str
    causation_id: str | None
    key: str | None
    attempt: int
    occurred_at: datetime
    now: datetime
    record: Record
    digest: bytes = field(repr=False)
    writes: Writes = field(default_factory=Writes, repr=False)

    @property
    def logger(self) -> logging.LoggerAdapter[logging.Logger]:
        """A logger whose records carry flow, event, handler and attempt."""
        names = {"flow": self.correlation_id, "event": self.event_id, "handler": self.handler, "attempt": self.attempt}
        return logging.LoggerAdapter(logging.getLogger(f"{self.service}.{self.handler}"), names)

    def write(self, sql: str, *args: object) -> None:
        """Keep a statement (`$1` placeholders) for the transaction that commits this execution.

        It runs after the handler returned, in order, and is committed with the events that the handler emits. An
        error in it is a failure of this handler.
        """
        if self.writes.closed:
            raise MicroflowError(
                f"context.write() was called after {self.handler} had returned: its writes are committed already.",
                fix="Await whatever writes before you return.",
            )
        caller = sys._getframe(1)
        self.writes.kept.append(Write(sql, args, caller.f_code.co_filename, caller.f_lineno))

    def idempotency_key(self, label: str = "") -> str:
        """A key (32 hexadecimal digits) for a call to the outside world that may be repeated.

        It is the same for every attempt and redrive, and another one for every handler and label.
        """
        return ids.idempotency_key(self.digest, service=self.service, handler=self.handler, label=label)


current: ContextVar[Context | None] = ContextVar("microflow_context", default=None)
"""The execution that whoever asks is a part of: the handler, what it calls, its thread, the tasks that it starts."""
