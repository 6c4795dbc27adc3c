"""The records of events that a person types: made once to be measured, and once more to be published."""

from __future__ import annotations

import json
import random
from typing import Any

from microflow.cli.event_forms import Form
from microflow.envelopes import headers_of, source_of
from microflow.ids import root_id
from microflow.partitioner import Partitioner
from microflow.ports import Clock, Record, Topic

NAME = "microflow-cli"


class RecordMaker:
    """Makes the records of one type. `flow` is the one they belong to, None for each its own."""

    def __init__(self, form: Form, *, flow: str | None, clock: Clock) -> None:
        self._form = form
        self._flow = flow
        self._clock = clock
        self._partitioner = Partitioner()
        self._random_bits = random.SystemRandom().getrandbits

    def record(self, fields: dict[str, Any], topic: Topic) -> Record:
        """The record of an event with these fields. Raises DecodeError or ContractError for what is none."""
        typed = self._form.typed(fields)
        key = self._form.key_of(typed).encode()
        now = self._clock.now()
        identifier = root_id(now, self._random_bits)
        headers = headers_of(
            identifier=identifier,
            event_type=self._form.event_type,
            source=source_of(NAME),
            now=now,
            correlation_id=self._flow or identifier,
            causation_id=None,
            key=key,
        )
        partition = self._partitioner.partition(key, partitions=topic.partitions)
        value = json.dumps(typed, ensure_ascii=False, separators=(",", ":")).encode()
        return Record(topic.name, partition, key, value, headers)

    def size(self, fields: dict[str, Any]) -> int:
        """How many bytes the record of an event will have, by the log's own count."""
        record = self.record(fields, Topic(self._form.topic, partitions=1, incarnation=""))
        headers = sum(len(name.encode()) + len(value) for name, value in record.headers)
        return len(record.key or b"") + len(record.value or b"") + headers
