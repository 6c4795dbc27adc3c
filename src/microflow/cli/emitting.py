"""Emitting: typed events become records of the log."""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import IO, Any

import click

from microflow.cli.console_lines import in_words
from microflow.cli.event_forms import Form, form_of_target, form_without_target, misfit, read_fields, read_json
from microflow.cli.event_records import NAME, RecordMaker
from microflow.cli.failures import INTERRUPTED
from microflow.cli.following import follow_flows
from microflow.cli.look import Look
from microflow.cli.progress import Progress
from microflow.cli.report_lines import json_line
from microflow.cli.screen import Screen
from microflow.cli.serving import set_up
from microflow.cli.stopping import Stopping
from microflow.clocks import SystemClock
from microflow.connect import connect_transport
from microflow.envelopes import headers_of, open_envelope, source_of
from microflow.errors import ContractError, DecodeError, SettingsError, TargetError, misspelling, nearest
from microflow.log_reader import LogReader
from microflow.ports import Record, Topic, Transport
from microflow.service import build
from microflow.settings import MEMORY, Settings, read_settings
from microflow.targets import load_target
from microflow.telemetry import place_of, tracing_of
from microflow.tracing import UNTRACED

BATCH = 500
TIME_TO_STOP = timedelta(seconds=5)


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What was asked for."""

    event_type: str
    fields: tuple[str, ...]
    file: str | None
    key: str | None
    flow: str | None
    app: str | None
    follow: bool


def emit_events(order: Order, *, kafka: str | None, look: Look) -> int:
    """Publish what was asked for and return the exit code."""
    settings = read_settings({"kafka": kafka, "log_level": look.log_level})
    if settings.kafka == MEMORY:
        raise SettingsError(
            "Nobody could read an event in a log in memory: it is gone when this command ends.",
            fix="Leave --log out, or say  --log local:PATH",
        )
    screen = Screen(look, log_format="console")
    set_up(screen, settings)
    _refuse_bad_bytes(order)
    fields = read_fields(order.fields)
    form = _form(order, settings)
    with _lines(order.file) as file:
        checked = _check(form, fields, order, file)
        emitting = Emitting(form, fields, order, settings, screen=screen)
        stopping = Stopping(drain=TIME_TO_STOP, told=lambda: None)
        screen.gone = stopping.request
        return stopping.run(lambda: emitting.run(file, checked))


def _refuse_bad_bytes(order: Order) -> None:
    for option, text in [
        ("", order.event_type),
        *(("", each) for each in order.fields),
        ("--key ", order.key or ""),
        ("--flow ", order.flow or ""),
    ]:
        try:
            text.encode()
        except UnicodeEncodeError:
            shown = text.encode("utf-8", "surrogateescape").decode(errors="backslashreplace")
            raise ContractError(
                f"{option}{shown} is no text: it holds bytes that are not UTF-8.",
                why="Events are JSON, and JSON is UTF-8.",
                fix="Convert it, for example with iconv, and repeat the command.",
            ) from None


def _form(order: Order, settings: Settings) -> Form:
    if order.app is None:
        return form_without_target(order.event_type, key=order.key, topics=settings.topics)
    try:
        target = load_target(order.app)
    except TargetError as error:
        error.fix = error.fix and error.fix.replace("microflow run ", "--app ").replace(
            "microflow new NAME", "--app FILE"
        )
        raise
    definition = build(target.service, topics=settings.topics)
    return form_of_target(order.event_type, target, definition, key=order.key, topics=settings.topics)


# ── the events ────────────────────────────────────────────────────────────────────────────────────────────────────


def _lines(path: str | None) -> IO[bytes]:
    """The file, to be read twice; stdin is copied, because it can be read once only."""
    if path is None or path == "-":
        copy = tempfile.TemporaryFile()  # noqa: SIM115 - the caller closes it
        if path == "-":
            copy.writelines(sys.stdin.buffer)
        return copy
    try:
        return Path(path).open("rb")
    except OSError as cause:
        near = nearest(Path(path).name, [each.name for each in Path(path).parent.glob("*.json*")])
        raise ContractError(
            f"{path} cannot be read: {cause.strerror}.", fix=f"Did you mean {near}?" if near else None
        ) from cause


@dataclass(frozen=True, slots=True)
class Checked:
    """Events that can be published: how many, and each that is larger than all before it, with its place."""

    total: int
    growing: tuple[tuple[int, str | None], ...]

    def refuse_too_large(self, event_type: str, limit: int) -> None:
        """Raise ContractError for the first event that the log will never take."""
        for size, place in self.growing:
            if size > limit:
                raise ContractError(
                    f"{event_type} is too large: its record has {size:,} bytes, and the log takes {limit:,}.",
                    where=place,
                    why="Large contents belong into a file or an object store, and the event names them.",
                    fix="Nothing was published.",
                )


def _check(form: Form, fields: dict[str, Any], order: Order, file: IO[bytes]) -> Checked:
    """Read every event once, count and measure, so that a mistake in the last line publishes nothing."""
    _check_flow(order.flow, form)
    making = RecordMaker(form, flow=order.flow, clock=SystemClock())
    total = 0
    growing: list[tuple[int, str | None]] = []
    for place, each in _events(order, fields, file):
        try:
            size = making.size(each)
        except (DecodeError, ContractError) as error:
            raise (misfit(error, place) if place else error) from None
        total += 1
        if not growing or size > growing[-1][0]:
            growing.append((size, place))
    return Checked(total, tuple(growing))


def _check_flow(flow: str | None, form: Form) -> None:
    # What no service would read is not written.
    headers = headers_of(
        identifier="check", event_type=form.event_type, source=source_of(NAME), now=SystemClock().now(),
        correlation_id=flow or "check", causation_id=None, key=None,
    )  # fmt: skip
    try:
        open_envelope(Record(form.topic, 0, None, b"", headers), type_of_topic=None, origin="")
    except DecodeError as error:
        raise ContractError(error.what, why=error.why, fix="--flow order-1") from None


def _events(order: Order, fields: dict[str, Any], file: IO[bytes]) -> Iterator[tuple[str | None, dict[str, Any]]]:
    """Each event with its place in the file."""
    if order.file is None:
        yield None, fields
        return
    file.seek(0)
    for number, line in enumerate(file, 1):
        if not line.strip():
            continue
        place = f"{'stdin' if order.file == '-' else order.file}:{number}"
        try:
            value = read_json(line)
        except ValueError as cause:
            raise ContractError(f"This line is no JSON: {cause}.", where=place, fix="Nothing was published.") from cause
        if not isinstance(value, dict):
            raise ContractError(
                "This line is no JSON object.", where=place, why='An event is one: {"order_id": "o-1"}',
                fix="Nothing was published.",
            )  # fmt: skip
        yield place, value | fields


# ── publishing ────────────────────────────────────────────────────────────────────────────────────────────────────


class Emitting:
    """Publishes events and shows what became of them."""

    def __init__(self, form: Form, fields: dict[str, Any], order: Order, settings: Settings, *, screen: Screen) -> None:
        self._form = form
        self._fields = fields
        self._order = order
        self._settings = settings
        self._screen = screen
        self._clock = SystemClock()
        self._making = RecordMaker(form, flow=order.flow, clock=self._clock)
        self._tracing = UNTRACED
        self._flows: set[str] = set()
        self._published = 0

    async def run(self, file: IO[bytes], checked: Checked) -> int:
        """Publish all, then follow their flows if that was asked for."""
        transport = await connect_transport(self._settings, clock=self._clock)
        try:
            # Before the topic is made, and again when it is known what it takes.
            checked.refuse_too_large(self._form.event_type, transport.max_record_bytes(self._form.topic))
            topic = await self._topic(transport)
            checked.refuse_too_large(self._form.event_type, transport.max_record_bytes(topic.name))
            place = place_of(self._settings.kafka, client_id="")
            environment = self._settings.opentelemetry
            async with tracing_of(NAME, place=place, clock=self._clock, environment=environment) as self._tracing:
                return await self._publish_and_follow(transport, topic, file, checked.total)
        finally:
            await transport.close()

    async def _publish_and_follow(self, transport: Transport, topic: Topic, file: IO[bytes], total: int) -> int:
        if not self._order.follow:
            return await self._publish_all(transport, topic, file, total)
        topics = await transport.topics.describe()
        async with LogReader.open(transport, list(topics), from_end=True) as reader:
            code = await self._publish_all(transport, topic, file, total)
            return code or await follow_flows(reader, self._flows, screen=self._screen)

    async def _topic(self, transport: Transport) -> Topic:
        name = self._form.topic
        before = await transport.topics.describe()
        if await transport.topics.ensure([name]):
            raise ContractError(
                f"The log has no topic {name}.", fix=f"microflow topics apply TARGET     or create {name} yourself"
            )
        if name not in before:
            near = misspelling(name, before)
            meant = f" Did you mean {near}?" if near else ""
            click.echo(f"note: the topic {name} is new: no service has read or written it yet.{meant}", err=True)
        return (await transport.topics.describe([name]))[name]

    async def _publish_all(self, transport: Transport, topic: Topic, file: IO[bytes], total: int) -> int:
        began = time.monotonic()
        batch: list[Record] = []
        with Progress(self._screen, total, label="emitting", counted="published") as progress:
            try:
                for _, fields in _events(self._order, self._fields, file):
                    batch.append(self._traced(self._making.record(fields, topic)))
                    if len(batch) == BATCH:
                        await self._publish(transport, batch, progress.advance)
                        batch = []
                await self._publish(transport, batch, progress.advance)
            except asyncio.CancelledError:
                click.echo(f"stopped: {self._published} of {total} events are published", err=True)
                return INTERRUPTED
        if self._order.file is not None:
            self._tell_all(timedelta(seconds=time.monotonic() - began))
        return 0

    async def _publish(self, transport: Transport, records: list[Record], advance: Callable[[int], None]) -> None:
        began = self._tracing.now()
        errors = await transport.publish(records)
        self._tracing.sent(records, errors, began=began)
        for error in errors:
            if error is not None:
                if self._published:
                    click.echo(f"{self._published} events are published before this:", err=True)
                raise error
            self._published += 1
        for record in records:
            headers = dict(record.headers)
            flow = headers["ce_correlationid"].decode()
            if self._order.follow:
                self._flows.add(flow)
            if self._order.file is None:
                self._tell_one(record, headers["ce_id"].decode(), flow)
        advance(len(records))

    def _traced(self, record: Record) -> Record:
        headers = self._tracing.create_root(self._form.event_type, record.topic, record.key, record.headers)
        return record._replace(headers=headers)

    def _tell_one(self, record: Record, identifier: str, flow: str) -> None:
        key = (record.key or b"").decode()
        if self._screen.json:
            fields = {
                "message": "emitted",
                "type": self._form.event_type,
                "event": identifier,
                "flow": flow,
                "key": key,
            }
            self._screen.line(json_line({**fields, "topic": record.topic, "partition": record.partition}))
        elif not self._screen.quiet:
            where = f"{record.topic}[{record.partition}]"
            self._screen.line(f"emitted {self._form.event_type} {key} → {where} · flow {flow}")

    def _tell_all(self, took: timedelta) -> None:
        if self._screen.json:
            fields = {"message": "emitted", "type": self._form.event_type, "topic": self._form.topic}
            self._screen.line(json_line({**fields, "events": self._published}))
        elif not self._screen.quiet:
            what = f"{self._published} × {self._form.event_type}"
            self._screen.line(f"emitted {what} → {self._form.topic} in {in_words(took)}")
