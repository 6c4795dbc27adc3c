"""A service with events that end its process: while they are decoded, in the handler, at their second attempt."""

from __future__ import annotations

import ctypes
import os
import signal

from pydantic import field_validator

from microflow.connection import Connection
from microflow.context import Context
from microflow.events import Event
from microflow.handlers import on
from microflow.service import Service
from tests.crash.names import called
from tests.crash.situation import PATIENT, Situation


class Fed(Event, key="account", topic=called("Fed")):
    account: str
    kind: str

    @field_validator("kind")
    @classmethod
    def explode(cls, kind: str) -> str:
        if kind == "decode":
            ctypes.string_at(0)
        return kind


class Weighed(Event, key="account", topic=called("Weighed")):
    account: str
    kind: str


@on("Fed", retry=PATIENT)
async def eat(fed: Fed, context: Context, situation: Situation) -> None:
    situation.note(context)
    context.write(*situation.effect(context))
    match fed.kind:
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "segfault":
            ctypes.string_at(0)
        case "retry" if context.attempt == 1:
            raise TimeoutError("the first time it only fails")
        case "retry":
            os.kill(os.getpid(), signal.SIGKILL)


@on("Weighed")
async def write_down(weighed: Weighed, context: Context, situation: Situation) -> None:
    context.write(*situation.effect(context))


@on("Weighed")
async def draw(weighed: Weighed, context: Context, connection: Connection, situation: Situation) -> None:
    await connection.execute(*situation.effect(context))
    if weighed.kind == "kill":
        os.kill(os.getpid(), signal.SIGKILL)


@on("Weighed")
async def tell(weighed: Weighed, context: Context, situation: Situation) -> None:
    context.write(*situation.effect(context))


service = Service(called("fed"))
