"""The largest event that an outbox takes is one that Kafka takes: refused at the relay, it would block its key."""

from __future__ import annotations

import asyncio
import logging
import re
import sqlite3
import uuid
from contextlib import closing
from pathlib import Path

import pytest

from microflow import ContractError, Event, Outbox
from microflow.hosting import running
from microflow.ports import TopicLayout
from microflow.records import MAX_RECORD_BYTES
from microflow.reports import Report
from microflow.service import Service
from microflow.settings import Settings
from microflow.transports.kafka import ClientSettings, KafkaTransport
from servers.finding import Found
from tests.asynchronous import asynchronous
from tests.user_code import user_module

AT_MOST = 30.0
SOURCE = """
class DocumentSigned(Event, key="document_id", topic="{topic}"):
    document_id: str
    text: str

@on("DocumentSigned", topic="{topic}")
async def file(document: DocumentSigned) -> None:
    pass

service = Service("{name}")
"""


def refused(database: Path, event: Event) -> tuple[int, int]:
    """How large an event is that an outbox does not take, and how large it may be, as the error says."""
    with closing(sqlite3.connect(database)) as connection, pytest.raises(ContractError) as caught:
        Outbox("web").append_sync(connection, event)
    said = re.search(r"DocumentSigned has ([\d,]+) bytes, and the log takes at most ([\d,]+)\.", str(caught.value))
    assert said is not None, str(caught.value)
    assert "Nothing was written." in str(caught.value)
    size, limit = (int(number.replace(",", "")) for number in said.groups())
    return size, limit


@pytest.mark.parametrize("key", ["d-1", "schlüssel-" * 20_000], ids=["short key", "long key"])
@asynchronous
async def test_the_largest_event_an_outbox_takes_is_published_and_one_byte_more_is_refused_at_once(
    key: str, kafka: Found, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL, logger="aiokafka")
    mark = uuid.uuid4().hex[:12]
    topic, name = f"documents-{mark}", f"archive-{mark}"
    transport = await KafkaTransport.open(ClientSettings(servers=kafka.address))
    await transport.administration.create({topic: TopicLayout(partitions=1)})
    taken = transport.max_record_bytes(topic)
    await transport.close()
    module = user_module(tmp_path, SOURCE.format(topic=topic, name=name), name=f"archive_{mark}")
    service, signed = module.service, module.DocumentSigned
    assert isinstance(service, Service)
    filed: asyncio.Queue[Report] = asyncio.Queue()
    settings = Settings(home=tmp_path, kafka=kafka.address)

    async with asyncio.timeout(AT_MOST), running(service, settings=settings, observe=filed.put_nowait):
        database = tmp_path / ".microflow" / f"{name}.db"
        size, limit = refused(database, signed(document_id=key, text="x" * MAX_RECORD_BYTES))
        room = MAX_RECORD_BYTES - (size - limit)
        assert refused(database, signed(document_id=key, text="x" * (room + 1))) == (limit + 1, limit)
        with closing(sqlite3.connect(database, timeout=AT_MOST)) as connection:
            Outbox("web").append_sync(connection, signed(document_id=key, text="x" * room))
            connection.commit()
        report = await filed.get()

    assert limit == MAX_RECORD_BYTES == taken
    assert report.outcome == "done"
    assert signed.model_validate_json(report.record.value or b"").text == "x" * room
