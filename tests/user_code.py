"""A user's module, written to a file and imported as the command would."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from textwrap import dedent
from types import ModuleType

IMPORTS = """\
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import wraps
from typing import Annotated, Any, Generic, Optional, Protocol, TypeVar
from pydantic import BaseModel
from microflow.connection import Connection
from microflow.context import Context
from microflow.errors import Reject
from microflow.events import Command, Event
from microflow.handlers import on
from microflow.retries import Retry
from microflow.service import Service
class OrderAccepted(Event):
    order_id: str
class PaymentReceived(Event, key="order_id"):
    order_id: str
class PaymentDeclined(Event, key="order_id"):
    order_id: str
"""


def user_module(folder: Path, source: str, *, name: str = "payments") -> ModuleType:
    """Import a module that holds our imports, three events and this source. It is in no `sys.modules` afterwards."""
    path = folder / f"{name.rpartition('.')[2]}.py"
    path.write_text(IMPORTS + dedent(source), encoding="utf-8")
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # annotations are resolved by way of it
    try:
        spec.loader.exec_module(module)
    finally:
        del sys.modules[name]
    return module


def place_of(folder: Path, marker: str, *, name: str = "payments") -> str:
    """`file:line` of the line of the user's module that holds a marker."""
    path = folder / f"{name}.py"
    lines = path.read_text(encoding="utf-8").splitlines()
    return f"{path}:{next(number for number, line in enumerate(lines, 1) if marker in line)}"
