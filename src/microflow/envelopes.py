"""The envelope: an event's identity and context, as CloudEvents puts it into a record's headers (binary mode).

Source: CloudEvents Kafka protocol binding 1.0.2 and its correlation extension. A record without these headers is a
foreign one: its type is that of its topic, if the service subscribes to exactly one there, and its id is synthesised
from where it stands, so that a redelivery has the same one.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

from microflow.errors import ContractError, DecodeError
from microflow.events import Message, key_of, options_of
from microflow.ids import RandomBits, content_of, derived_id, digest_of, root_id
from microflow.records import Headers, Record

JSON = b"application/json"
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Envelope:
    """What is known of a record's event before its value is decoded. `digest` stands for (source, id)."""

    id: str
    source: str
    type: str
    time: datetime
    correlation_id: str
    causation_id: str | None
    digest: bytes
    content: bytes


@dataclass(frozen=True, slots=True)
class Sealed:
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
    headers = dict(record.headers)
    event_type = _text(headers, "ce_type") or type_of_topic
    if event_type is None:
        return None
    identifier, source = _text(headers, "ce_id"), _text(headers, "ce_source")
    if not identifier:
        source, identifier = origin, f"{record.partition}@{record.offset}"
    source = source or origin
    return Envelope(
        id=identifier,
        source=source,
        type=event_type,
        time=_time(headers, record),
        correlation_id=_text(headers, "ce_correlationid") or identifier,
        causation_id=_text(headers, "ce_causationid"),
        digest=digest_of(source, identifier),
        content=content_of(record.value),
    )


def position_digest(record: Record, origin: str) -> bytes:
    """What stands for a record whose headers cannot be read: where it is."""
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
) -> Sealed:
    """Put an event that nothing caused into its envelope. Raises ContractError if its class names no key."""
    options = options_of(type(event))
    key = key_of(event)
    if key is None:
        raise ContractError(
            f"{type(event).__name__} has no key, and a root event needs one: nothing caused it, so it inherits none.",
            where=options.where,
            fix=f'For example: class {type(event).__name__}(Event, key="order_id")',
        )
    identifier = root_id(now, random_bits)
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
    headers = [
        ("content-type", JSON),
        ("ce_specversion", b"1.0"),
        ("ce_id", identifier.encode()),
        ("ce_type", event_type.encode()),
        ("ce_source", source.encode()),
        ("ce_time", now.isoformat(timespec="microseconds").replace("+00:00", "Z").encode()),
        ("ce_correlationid", correlation_id.encode()),
    ]
    if causation_id is not None:
        headers.append(("ce_causationid", causation_id.encode()))
    if key is not None:
        headers.append(("ce_partitionkey", key))
    return tuple(headers)


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
    value = event.__pydantic_serializer__.to_json(event)
    return Sealed(identifier, event_type, topic, key, value, headers)


def _text(headers: dict[str, bytes], name: str) -> str | None:
    value = headers.get(name)
    if value is None:
        return None
    try:
        return value.decode()
    except UnicodeDecodeError as cause:
        raise DecodeError(f"The header {name} is not UTF-8: {value[:32]!r}.") from cause


def _time(headers: dict[str, bytes], record: Record) -> datetime:
    text = _text(headers, "ce_time")
    if text is not None:
        try:
            time = datetime.fromisoformat(text)
            return time if time.tzinfo is not None else time.replace(tzinfo=UTC)
        except ValueError:
            pass  # when it happened is nothing that a handler must know: the log's own time does
    return record.timestamp or EPOCH
