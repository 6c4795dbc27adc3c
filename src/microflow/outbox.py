"""Publishing from outside a handler: an event is committed with whatever else the caller's own transaction holds."""

from __future__ import annotations

import random
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from microflow.clocks import SystemClock
from microflow.connect import append_to, append_to_sync
from microflow.envelopes import Sealed, seal_root
from microflow.errors import ContractError
from microflow.events import Message, check_event_class
from microflow.execution import check_size
from microflow.lookout import Lookout
from microflow.ports import Clock, OutboxRow
from microflow.records import MAX_RECORD_BYTES
from microflow.service import check_service_name, topic_of
from microflow.telemetry import tracing_from_outside


class Outbox:
    """The outbox of a program that is no service, such as a web application: `outbox = Outbox("web")`.

    `name` is the source of its events (`/services/web`), written as a service's. Any running service or `microflow
    relay` of the database publishes what is appended. `topics` records the topic of types that do not say it
    themselves. The order of one key is that of the caller's own locks: nothing else is locked here. A flow that begins
    in a traced request hangs under that request. Raises DefinitionError for a wrong name.
    """

    def __init__(self, name: str, *, topics: Mapping[str, str] | None = None, clock: Clock | None = None) -> None:
        self._name = check_service_name(name, where=None, fix='outbox = Outbox("web")')
        self._topics = dict(topics or {})
        self._clock = clock or SystemClock()
        self._random_bits = random.SystemRandom().getrandbits
        self._tracing = tracing_from_outside(self._name, self._clock)

    async def append(self, connection: Any, *events: Message, correlation_id: str | None = None) -> None:
        """Append events to the outbox on an asynchronous connection, as part of the transaction that it has.

        It is one of asyncpg, psycopg, SQLAlchemy (`AsyncConnection`, `AsyncSession`) or aiosqlite, or a handler's
        own. `correlation_id` is the flow they belong to, by default each one's own id. Rolled back with the caller's
        transaction, always. Raises ContractError for an event without a key, StoreError where there is no outbox yet,
        and what the caller's library raises.
        """
        await append_to(connection, self._name, self._rows(events, correlation_id))
        Lookout.expect()

    def append_sync(self, connection: Any, *events: Message, correlation_id: str | None = None) -> None:
        """As `append`, on a blocking connection: one of psycopg, psycopg2, SQLAlchemy (`Connection`, `Session`), Django
        (`django.db.connection`) or sqlite3.

        One in autocommit mode (`isolation_level=None` of sqlite3) has no transaction until the caller says `begin`:
        without it each event is committed at once, by itself, and a later rollback takes nothing back.
        """
        append_to_sync(connection, self._name, self._rows(events, correlation_id))
        Lookout.expect()

    def _rows(self, events: tuple[Message, ...], correlation_id: str | None) -> list[OutboxRow]:
        now = self._clock.now()
        sealed = [self._seal(event, now, correlation_id) for event in events]
        return [OutboxRow(each.topic, each.key, each.value, each.headers, now) for each in sealed]

    def _seal(self, event: Message, now: datetime, correlation_id: str | None) -> Sealed:
        if not isinstance(event, Message):
            raise ContractError(
                f"{event!r} is no event.", fix='await outbox.append(connection, OrderPlaced(order_id="…"))'
            )
        check_event_class(type(event))
        sealed = seal_root(
            event,
            service=self._name,
            topic=topic_of(type(event), self._topics),
            now=now,
            random_bits=self._random_bits,
            correlation_id=correlation_id,
        )
        headers = self._tracing.create_root(sealed.type, sealed.topic, sealed.key, sealed.headers)
        sealed = sealed._replace(headers=headers)
        check_size(sealed, MAX_RECORD_BYTES, where=type(event).__microflow__.where)
        return sealed
