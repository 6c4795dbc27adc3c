"""Following flows: their events as the log gets them, until nothing happens any more."""

from __future__ import annotations

import time
from collections.abc import Collection
from datetime import timedelta

from microflow.cli.console_lines import clock_time, in_words
from microflow.cli.report_lines import instant_text, json_line
from microflow.cli.screen import Screen
from microflow.clocks import SystemClock
from microflow.dead_letter_copies import is_copy
from microflow.envelopes import Envelope, open_envelope
from microflow.errors import DecodeError
from microflow.log_reader import LogReader
from microflow.ports import Record

QUIET = timedelta(seconds=5)


async def follow_flows(reader: LogReader, flows: Collection[str], *, screen: Screen) -> int:
    """Show the events of some flows until none has come for five seconds, indented below what caused them.

    A flow that waits longer than that, for a retry perhaps, goes on without being watched. Topics that did not exist
    when the reader was opened are not seen.
    """
    depths: dict[str, int] = {}
    last = time.monotonic()
    while (left := QUIET - timedelta(seconds=time.monotonic() - last)) > timedelta(0):
        for record in await reader.read(wait=left):
            envelope = _envelope(record)
            if envelope is None or envelope.correlation_id not in flows:
                continue
            last = time.monotonic()
            depths[envelope.id] = depths.get(envelope.causation_id or "", -1) + 1
            _show(record, envelope, depths[envelope.id], screen)
    if not screen.json and not screen.quiet:
        screen.line(f"quiet for {in_words(QUIET)}: {len(depths)} events")
    return 0


def _envelope(record: Record) -> Envelope | None:
    if is_copy(record):  # of a dead letter: it stands in the flow once already
        return None
    try:
        return open_envelope(record, type_of_topic=None, origin="")
    except DecodeError:
        return None


def _show(record: Record, envelope: Envelope, depth: int, screen: Screen) -> None:
    at = record.timestamp or SystemClock().now()
    key = None if record.key is None else record.key.decode(errors="replace")
    if screen.json:
        fields = {
            "at": instant_text(at),
            "type": envelope.type,
            "event": envelope.id,
            "flow": envelope.correlation_id,
            "cause": envelope.causation_id,
            "source": envelope.source,
            "key": key,
            "topic": record.topic,
            "partition": record.partition,
            "offset": record.offset,
        }
        screen.line(json_line(fields))
        return
    name = f"{'  ' * depth}{screen.style('●', fg='cyan')} {envelope.type}"
    place = screen.style(f"{record.topic}[{record.partition}]@{record.offset}", dim=True)
    source = envelope.source.removeprefix("/services/")
    screen.line(f"{clock_time(at)}  {name}  {key or ''}  from {source}  {place}")
