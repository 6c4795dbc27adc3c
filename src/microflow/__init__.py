"""microflow: choreographed, event-driven microworkflows.

What a handler's author types, and no more. The names are resolved when they are first used, so that `microflow
--help` and tools that only look around do not pay for what they do not need.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from microflow.connection import Connection
    from microflow.context import Context
    from microflow.errors import (
        CheckViolation,
        ContractError,
        DefinitionError,
        ForeignKeyViolation,
        IntegrityViolation,
        MicroflowError,
        NotNullViolation,
        Reject,
        StoreError,
        TransportError,
        UniqueViolation,
    )
    from microflow.events import Command, Event
    from microflow.handlers import on
    from microflow.hosting import run, running
    from microflow.outbox import Outbox
    from microflow.retries import Retry
    from microflow.service import Service
    from microflow.version import __version__

_ROOMS = {
    "CheckViolation": "errors",
    "Command": "events",
    "Connection": "connection",
    "Context": "context",
    "ContractError": "errors",
    "DefinitionError": "errors",
    "Event": "events",
    "ForeignKeyViolation": "errors",
    "IntegrityViolation": "errors",
    "MicroflowError": "errors",
    "NotNullViolation": "errors",
    "Outbox": "outbox",
    "Reject": "errors",
    "Retry": "retries",
    "Service": "service",
    "StoreError": "errors",
    "TransportError": "errors",
    "UniqueViolation": "errors",
    "__version__": "version",
    "on": "handlers",
    "run": "hosting",
    "running": "hosting",
}

__all__ = [
    "CheckViolation",
    "Command",
    "Connection",
    "Context",
    "ContractError",
    "DefinitionError",
    "Event",
    "ForeignKeyViolation",
    "IntegrityViolation",
    "MicroflowError",
    "NotNullViolation",
    "Outbox",
    "Reject",
    "Retry",
    "Service",
    "StoreError",
    "TransportError",
    "UniqueViolation",
    "__version__",
    "on",
    "run",
    "running",
]


def __getattr__(name: str) -> Any:
    if name not in _ROOMS:
        raise AttributeError(f"module 'microflow' has no attribute {name!r}")
    value = getattr(import_module(f"microflow.{_ROOMS[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
