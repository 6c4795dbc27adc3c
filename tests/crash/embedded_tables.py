"""The files of an embedded chain, read with plain sqlite3: it shares no code with the runtime."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path

from tests.crash.readings import Effect, Logged, Tables, logged

OFFSET_BITS = 40


def _open(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=5, isolation_level=None)


def read_log(path: Path) -> list[Logged]:
    """All records, in order of topics, partitions and offsets."""
    with closing(_open(path)) as connection:
        names = {
            number: (name, partition)
            for number, name, partition in connection.execute(
                "select p.id, t.name, p.partition from microflow_log_partitions p "
                "join microflow_log_topics t on t.id = p.topic_id"
            )
        }
        rows = connection.execute("select id, key, headers from microflow_log_records order by id").fetchall()
    return [
        logged(*names[number >> OFFSET_BITS], number & ((1 << OFFSET_BITS) - 1), key, headers_of(blob))
        for number, key, blob in rows
    ]


def headers_of(blob: bytes) -> dict[str, str]:
    """The headers of a record: four bytes say how long the layout is, the layout names them and their lengths."""
    end = 4 + int.from_bytes(blob[:4], "big")
    layout = json.loads(blob[4:end])
    headers = {}
    for name, length in zip(layout[::2], layout[1::2], strict=True):
        headers[name] = blob[end : end + length].decode()
        end += length
    return headers


def read_tables(path: Path) -> Tables:
    """All rows that tell what a service has done."""
    with closing(_open(path)) as connection:
        connection.execute("begin")
        effects = connection.execute(
            'select handler, event_id, topic, "key", process, owner from effects order by position'
        ).fetchall()
        dead = connection.execute(
            "select h.name, d.headers, d.reason "
            "from microflow_dead_letters d join microflow_handlers h on h.id = d.handler"
        ).fetchall()
        most_crashes = connection.execute("select coalesce(max(crashes), 0) from microflow_suspects").fetchone()[0]
        parked = connection.execute("select count(*) from microflow_parked").fetchone()[0]
        outbox = connection.execute("select count(*) from microflow_outbox").fetchone()[0]
        partitions = connection.execute(
            "select topic, number, watermark, owner from microflow_partitions where watermark is not null"
        ).fetchall()
    return Tables(
        effects=[Effect(*row) for row in effects],
        dead=[(handler, headers_of(blob)["ce_id"]) for handler, blob, _ in dead],
        parked=parked,
        outbox=outbox,
        watermarks={(topic, number): watermark for topic, number, watermark, _ in partitions},
        owners={(topic, number): owner for topic, number, _, owner in partitions},
        crashed=[(handler, headers_of(blob)["ce_id"]) for handler, blob, reason in dead if reason == "crashed"],
        most_crashes=most_crashes,
    )
