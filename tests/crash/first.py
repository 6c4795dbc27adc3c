"""The first service of the chain: two handlers for one event, one with kept writes and one inside the transaction."""

from __future__ import annotations

from microflow.connection import Connection
from microflow.context import Context
from microflow.events import Event
from microflow.handlers import on
from microflow.service import Service
from tests.crash.names import called
from tests.crash.situation import PATIENT, TOO_SLOW_FOR_A_TRANSACTION, Situation


class Placed(Event, key="account", topic=called("Placed")):
    account: str
    kind: str


class OrderEvent(Event, key="account", topic=called("orders")):
    account: str
    kind: str


class Accepted(OrderEvent):
    pass


class Audited(OrderEvent):
    pass


@on("Placed", retry=PATIENT)
async def accept(placed: Placed, context: Context, situation: Situation) -> Accepted:
    context.write(*situation.effect(context))
    await situation.play(placed.kind, context)
    situation.reject(placed.kind)
    return Accepted(account=placed.account, kind=placed.kind)


@on("Placed", retry=PATIENT)
async def audit(placed: Placed, context: Context, connection: Connection, situation: Situation) -> Audited:
    await connection.execute(*situation.effect(context))
    if placed.kind not in TOO_SLOW_FOR_A_TRANSACTION:
        await situation.play(placed.kind, context)
    return Audited(account=placed.account, kind=placed.kind)


service = Service(called("first"))
