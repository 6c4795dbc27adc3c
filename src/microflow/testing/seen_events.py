"""The events of a world's log, as a test looks at them."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any

from microflow.envelopes import open_envelope
from microflow.errors import DecodeError, TransportError
from microflow.ports import Administration, Inspection, RebalanceListener, Record, Subscription, Topics
from microflow.transports.local import LocalTransport


@dataclass(frozen=True, slots=True)
class SeenEvent:
    """An event as it stands in the log. `data` is its JSON, `flow` its correlation id, `cause` its causation id."""

    type: str
    data: Any
    id: str
    flow: str
    cause: str | None
    key: str | None
    topic: str
    record: Record = field(repr=False)


class RecordedTransport:
    """A transport that remembers what was published through it, in order."""

    def __init__(self, transport: LocalTransport, remember: Callable[[Record], None]) -> None:
        self._transport = transport
        self._remember = remember

    @property
    def topics(self) -> Topics:
        return self._transport.topics

    @property
    def inspection(self) -> Inspection:
        return self._transport.inspection

    @property
    def administration(self) -> Administration:
        return self._transport.administration

    def max_record_bytes(self, topic: str) -> int:
        return self._transport.max_record_bytes(topic)

    @property
    def publishing_at_once(self) -> int:
        return self._transport.publishing_at_once

    async def publish(self, records: Sequence[Record]) -> Sequence[TransportError | None]:
        errors = await self._transport.publish(records)
        for record, error in zip(records, errors, strict=True):
            if error is None:
                self._remember(record)
        return errors

    def subscribe(
        self, topics: Collection[str], *, group: str | None, listener: RebalanceListener
    ) -> AbstractAsyncContextManager[Subscription]:
        return self._transport.subscribe(topics, group=group, listener=listener)

    async def close(self) -> None:
        await self._transport.close()


def seen(record: Record) -> SeenEvent:
    envelope = None
    with contextlib.suppress(DecodeError):
        envelope = open_envelope(record, type_of_topic=record.topic, origin=f"/{record.topic}")
    try:
        data = json.loads(record.value or b"null")
    except ValueError:
        data = record.value
    return SeenEvent(
        type=envelope.type if envelope else record.topic,
        data=data,
        id=envelope.id if envelope else "",
        flow=envelope.correlation_id if envelope else "",
        cause=envelope.causation_id if envelope else None,
        key=None if record.key is None else record.key.decode(errors="replace"),
        topic=record.topic,
        record=record,
    )
