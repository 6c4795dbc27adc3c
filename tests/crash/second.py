"""The second service of the chain: reads what the first one emits, two types on one topic."""

from __future__ import annotations

from microflow.connection import Connection
from microflow.context import Context
from microflow.events import Event
from microflow.handlers import on
from microflow.service import Service
from tests.crash.names import called
from tests.crash.situation import PATIENT, TOO_SLOW_FOR_A_TRANSACTION, Situation


class Accepted(Event):
    account: str
    kind: str


class Audited(Event):
    account: str
    kind: str


class LedgerEvent(Event, key="account", topic=called("ledger"), external=True):
    account: str


class Settled(LedgerEvent):
    pass


class Noted(LedgerEvent):
    pass


@on("Accepted", topic=called("orders"), retry=PATIENT)
async def settle(accepted: Accepted, context: Context, connection: Connection, situation: Situation) -> Settled:
    await connection.execute(*situation.effect(context))
    if accepted.kind not in TOO_SLOW_FOR_A_TRANSACTION:
        await situation.play(accepted.kind, context)
    return Settled(account=accepted.account)


@on("Audited", topic=called("orders"), retry=PATIENT)
async def note(audited: Audited, context: Context, situation: Situation) -> Noted:
    context.write(*situation.effect(context))
    if audited.kind not in TOO_SLOW_FOR_A_TRANSACTION:
        await situation.play(audited.kind, context)
    return Noted(account=audited.account)


service = Service(called("second"))
