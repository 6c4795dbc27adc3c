"""The envelope: an event's identity and context, as CloudEvents puts it into a record's headers (binary mode).

Source: CloudEvents 1.0.2, its Kafka protocol binding, correlation and partitioning extensions. Header names and values
are UTF-8, nothing is percent-encoded (that is HTTP's binding). Structured mode is read, never written. A record without
these headers is a foreign one: its type is that of its topic, if the service subscribes to exactly one there, and its
id is synthesised from where it stands, so that a redelivery has the same one.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from datetime import UTC, datetime
from functools import lru_cache
from typing import NamedTuple

from pydantic_core import from_json

from microflow.decoding import STRUCTURED, media_type
from microflow.errors import ContractError, DecodeError
from microflow.events import Message, key_of, options_of
from microflow.ids import RandomBits, content_of, derived_id, digest_of, id_of_position, root_id
from microflow.records import Headers, Record

CONTENT_TYPE = ("content-type", b"application/json")
SPEC_VERSION = ("ce_specversion", b"1.0")
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Envelope(NamedTuple):
    """What is known of a record's event before its value is decoded. `digest` stands for (source, id)."""

    id: str
    source: str
    type: str
    time: datetime
    correlation_id: str
    causation_id: str | None
    digest: bytes
    content: bytes
    content_type: str | None = None


class Sealed(NamedTuple):
    """An emitted event, ready to be published: everything but the position that the outbox gives it."""

    id: str
    type: str
    topic: str
    key: bytes | None
    value: bytes
    headers: Headers


def open_envelope(record: Record, *, type_of_topic: str | None, origin: str) -> Envelope | None:
    """The envelope of a record; None if it names no type and its topic does not imply one.

    `origin` names the log and the topic's incarnation, for records that bring no id. Raises DecodeError for headers
    that are not what CloudEvents says.
    """
    content_type, attributes = _attributes(record)
    event_type = attributes.get("type") or type_of_topic
    if event_type is None:
        return None
    time = _time(attributes.get("time"), record)
    identifier, source = attributes.get("id"), attributes.get("source") or origin
    if identifier:
        digest = digest_of(source, identifier)
    else:
        source, digest = origin, position_digest(record, origin)
        identifier = id_of_position(digest, time)
    return Envelope(
        id=identifier,
        source=source,
        type=event_type,
        time=time,
        correlation_id=attributes.get("correlationid") or identifier,
        causation_id=attributes.get("causationid") or None,
        digest=digest,
        content=content_of(record.value),
        content_type=content_type,
    )


def origin_of(cluster_id: str, topic: str, incarnation: str) -> str:
    """The source of a topic's records that bring no id: the log, and which topic of this name it is."""
    return f"/logs/{cluster_id}/{topic}/{incarnation}"


def only_type(types: Collection[str]) -> str | None:
    """The one type that a record without one can be of, where a service handles these types of its topic."""
    return next(iter(types)) if len(types) == 1 else None


def position_digest(record: Record, origin: str) -> bytes:
    """What stands for a record that brings no id, or whose headers cannot be read: where it is."""
    return digest_of(origin, f"{record.partition}@{record.offset}")


def seal_emitted(
    event: Message,
    *,
    cause: Envelope,
    cause_key: bytes | None,
    service: str,
    handler: str,
    topic: str,
    ordinal: int,
    now: datetime,
) -> Sealed:
    """Put an event that a handler emits into its envelope: flow and key are its cause's unless it has its own."""
    options = options_of(type(event))
    identifier = derived_id(
        cause.digest, cause.id, cause.time, service=service, handler=handler, event_type=options.type, ordinal=ordinal
    )
    own_key = key_of(event)
    return _seal(
        event,
        identifier=identifier,
        event_type=options.type,
        service=service,
        topic=topic,
        key=cause_key if own_key is None else own_key.encode(),
        now=now,
        correlation_id=cause.correlation_id,
        causation_id=cause.id,
    )


def seal_root(
    event: Message,
    *,
    service: str,
    topic: str,
    now: datetime,
    random_bits: RandomBits,
    correlation_id: str | None = None,
    key: str | None = None,
    identifier: str | None = None,
) -> Sealed:
    """Put an event that nothing caused into its envelope.

    `key` is for an event whose class names none; `identifier` for one that was sent before. Raises ContractError if
    there is no key, or an empty one.
    """
    options = options_of(type(event))
    key = key_of(event) if key is None else key
    if key is None:
        raise ContractError(
            f"{type(event).__name__} has no key, and a root event needs one: nothing caused it, so it inherits none.",
            where=options.where,
            fix=f'For example: class {type(event).__name__}(Event, key="order_id")',
        )
    if not key:
        raise ContractError(
            f"The key of {type(event).__name__} is empty, and a root event needs one.",
            where=options.where,
            why="All events with an empty key would wait for each other.",
            fix=f'For example: {type(event).__name__}({options.key[0] if options.key else "order_id"}="o-1")',
        )
    if correlation_id is not None:
        _check_correlation(correlation_id)
    identifier = identifier or root_id(now, random_bits)
    return _seal(
        event,
        identifier=identifier,
        event_type=options.type,
        service=service,
        topic=topic,
        key=key.encode(),
        now=now,
        correlation_id=correlation_id or identifier,
        causation_id=None,
    )


def headers_of(
    *,
    identifier: str,
    event_type: str,
    source: str,
    now: datetime,
    correlation_id: str,
    causation_id: str | None,
    key: bytes | None,
) -> Headers:
    """The headers of CloudEvents' binary mode, in a fixed order."""
    time = now.astimezone(UTC).isoformat(timespec="microseconds")
    headers = [
        CONTENT_TYPE,
        SPEC_VERSION,
        ("ce_id", identifier.encode()),
        *_type_and_source(event_type, source),
        ("ce_time", f"{time[:-6]}Z".encode()),
        ("ce_correlationid", correlation_id.encode()),
    ]
    if causation_id is not None:
        headers.append(("ce_causationid", causation_id.encode()))
    if key is not None and _is_utf8(key):
        headers.append(("ce_partitionkey", key))
    return tuple(headers)


@lru_cache(maxsize=1024)
def _type_and_source(event_type: str, source: str) -> Headers:
    return ("ce_type", event_type.encode()), ("ce_source", source.encode())


def _is_utf8(key: bytes) -> bool:
    # A foreign cause's key may be any bytes; an attribute of CloudEvents is text.
    if key.isascii():
        return True
    try:
        key.decode()
    except UnicodeDecodeError:
        return False
    return True


def source_of(service: str) -> str:
    """A service's CloudEvents source: with an id, unique."""
    return f"/services/{service}"


def _seal(
    event: Message,
    *,
    identifier: str,
    event_type: str,
    service: str,
    topic: str,
    key: bytes | None,
    now: datetime,
    correlation_id: str,
    causation_id: str | None,
) -> Sealed:
    headers = headers_of(
        identifier=identifier,
        event_type=event_type,
        source=source_of(service),
        now=now,
        correlation_id=correlation_id,
        causation_id=causation_id,
        key=key,
    )
    value = event.__pydantic_serializer__.to_json(event, by_alias=True)
    return Sealed(identifier, event_type, topic, key, value, headers)


def _check_correlation(text: str) -> None:
    # What no service would read is not written.
    try:
        _checked("the flow's id", text)
    except DecodeError as cause:
        raise ContractError(cause.what, why=cause.why) from None


# ── reading ───────────────────────────────────────────────────────────────────────────────────────────────────────

ATTRIBUTES = ("id", "source", "type", "time", "correlationid", "causationid")
ATTRIBUTE_HEADERS = tuple((name, f"ce_{name}") for name in ATTRIBUTES)
LONGEST_ATTRIBUTE = 1024
CONTROL_CHARACTERS = re.compile("[\x00-\x1f\x7f-\x9f]")


def _attributes(record: Record) -> tuple[str | None, dict[str, str]]:
    headers = dict(record.headers)
    if "ce_id" not in headers or "content-type" not in headers:
        # The binding writes them in lower case; some clients, as HTTP's, do not care. An exact name goes first.
        headers = {name.lower(): value for name, value in record.headers} | headers
    content_type = _text("content-type", headers["content-type"]) if "content-type" in headers else None
    if media_type(content_type) == STRUCTURED:
        return content_type, _structured_attributes(record.value)
    attributes = {}
    for name, header in ATTRIBUTE_HEADERS:
        if (value := headers.get(header)) is not None:
            attributes[name] = _text(header, value)
    return content_type, attributes


def _text(name: str, value: bytes) -> str:
    try:
        text = value.decode()
    except UnicodeDecodeError as cause:
        raise DecodeError(f"The header {name} is not UTF-8: {value[:32]!r}.") from cause
    # Hardly any text has others than printable characters: the search itself costs more than all the rest here.
    return text if text.isprintable() and len(text) <= LONGEST_ATTRIBUTE else _checked(name, text)


def _structured_attributes(value: bytes | None) -> dict[str, str]:
    try:
        envelope = from_json(value or b"")
    except ValueError as cause:
        raise DecodeError(f"The record says {STRUCTURED}, and its value is no JSON: {cause}.") from cause
    if not isinstance(envelope, dict):
        raise DecodeError(f"The record says {STRUCTURED}, and its value is no JSON object.")
    found = {name: envelope[name] for name in ATTRIBUTES if envelope.get(name) is not None}
    for name, attribute in found.items():
        if not isinstance(attribute, str):
            raise DecodeError(f"The attribute {name} is no text but {type(attribute).__name__}.")
    return {name: _checked(name, attribute) for name, attribute in found.items()}


def _checked(name: str, text: str) -> str:
    # Ids go into every event of the flow, into indexes and on screens: what is hostile is stopped here.
    if len(text) > LONGEST_ATTRIBUTE:
        raise DecodeError(f"{name} has {len(text):,} characters, and at most {LONGEST_ATTRIBUTE:,} are taken.")
    if CONTROL_CHARACTERS.search(text):
        raise DecodeError(f"{name} holds control characters: {text[:32]!r}.", why="CloudEvents forbids them in texts.")
    return text


def _time(text: str | None, record: Record) -> datetime:
    try:
        time = datetime.fromisoformat(text or "")
        return (time if time.tzinfo is not None else time.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError):
        # When it happened is nothing that a handler must know: the log's own time does.
        return record.timestamp or EPOCH
