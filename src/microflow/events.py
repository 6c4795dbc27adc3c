"""Events and commands: what a service's author declares, and where and under which key it travels."""

from __future__ import annotations

import json
import re
import types
import typing
from collections.abc import Iterator, Sequence
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from typing import Annotated, Any, ClassVar, Never, Union
from uuid import UUID

from pydantic import BaseModel, ConfigDict, GetCoreSchemaHandler
from pydantic_core import CoreSchema

from microflow.errors import ContractError, DefinitionError, nearest
from microflow.keywords import EventOptions, read_keywords
from microflow.places import calling_place

# Where a pydantic schema holds others; not in `default` or `metadata`, which hold values of the user's.
_INNER = ("schema", "items_schema", "keys_schema", "values_schema", "fields", "choices", "definitions", "steps")
_INNER_MODES = ("lax_schema", "strict_schema", "json_schema", "python_schema")


def _fail_fast(schema: Any) -> None:
    # A list of a million wrong items would be a million errors, 400 bytes each, of which five are ever told.
    if isinstance(schema, list | tuple):
        for each in schema:
            _fail_fast(each)
    elif isinstance(schema, dict):
        kind = schema.get("type")
        if not isinstance(kind, str):  # fields by name, choices by tag
            _fail_fast(list(schema.values()))
            return
        if kind in {"list", "set", "frozenset", "tuple"}:
            schema["fail_fast"] = True
        for name in _INNER + _INNER_MODES:
            _fail_fast(schema.get(name))


class Message(BaseModel):
    """What `Event` and `Command` share: frozen, compared by its fields, unknown fields ignored when read."""

    model_config = ConfigDict(
        frozen=True,
        extra="ignore",
        # What is written must be readable again: NaN and bytes that are no UTF-8 have no form of their own in JSON.
        ser_json_inf_nan="strings",
        ser_json_bytes="base64",
        val_json_bytes="base64",
        # An alias is a field's name on the wire; in Python the field has its own.
        populate_by_name=True,
        # The default of newer pydantics: `model_name` is a field like any other.
        protected_namespaces=("model_validate", "model_dump"),
    )

    # One attribute with dunders holds every keyword, so that no field a user may think of collides with it.
    __microflow__: ClassVar[EventOptions] = EventOptions(type="Message")

    def __init_subclass__(
        cls,
        *,
        key: str | Sequence[str] | None = None,
        topic: str | None = None,
        type: str | None = None,  # noqa: A002 - the word of CloudEvents
        external: bool | None = None,
        **misspelt: Never,
    ) -> None:
        super().__init_subclass__()
        given = {"key": key, "topic": topic, "type": type, "external": external}
        cls.__microflow__ = read_keywords(cls, given, misspelt, where=calling_place())

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        schema = handler(source)
        _fail_fast(schema)
        return schema


class Event(Message):
    """A fact, in the past tense: `class PaymentReceived(Event, key="order_id")`.

    Class keywords, all inherited but `type`: `key` (a field, or a tuple of fields, whose value keeps events in
    order), `topic` (default: the type's name), `type` (the name on the wire, default: the class name),
    `external=True` (the event leaves the system; nobody here handles it). A root event needs a key; one that a
    handler emits inherits its cause's key if it has none of its own.
    """


class Command(Message):
    """An event addressed to one owner: `class RetrievePayment(Command)`. Takes the keywords of `Event`."""


BARE = (Message, Event, Command)


def options_of(event: type[Message]) -> EventOptions:
    """The class keywords of an event class, inherited ones included."""
    return event.__microflow__


def key_of(event: Message) -> str | None:
    """The partition key of an event as text, or None if its class names no key field.

    A key field is `str`, `int`, `UUID` or an enum of these; several fields become a JSON array of texts. Raises
    ContractError for a value that is none of them, or is missing.
    """
    options = event.__microflow__
    if options.key is None:
        return None
    if not options.key_is_tuple:
        return _key_text(event, options.key[0])
    parts = [_key_text(event, field) for field in options.key]
    return json.dumps(parts, separators=(",", ":"), ensure_ascii=False)


def _key_text(event: Message, field: str) -> str:
    value = getattr(event, field)
    if type(value) is str:
        return value
    if isinstance(value, Enum):
        value = value.value
    if isinstance(value, str | int | UUID) and not isinstance(value, bool):
        return str(value)
    raise ContractError(
        f"{type(event).__name__}.{field} is the event's key, and {value!r} cannot be one.",
        where=event.__microflow__.where,
        why=WHAT_A_KEY_IS,
    )


WHAT_A_KEY_IS = "A key is a str, an int, a UUID or an enum of these; it decides what is kept in order."


# ── what is checked when a service is built ───────────────────────────────────────────────────────────────────────


def check_event_class(event: type[Message]) -> None:
    """Raise DefinitionError if an event class names a key that cannot be one, or a topic Kafka would refuse."""
    options = options_of(event)
    if "[" in event.__name__ and "type" not in options.said:
        plain = event.__name__.partition("[")[0]
        raise DefinitionError(
            f"{event.__name__} has no name on the wire.",
            where=options.where,
            why="The type of a generic event with its parameters filled in would be called like that.",
            fix=f"Give it a name: class OrderAccepted({event.__name__}): ..., and use that instead of {plain}[…].",
        )
    for field in options.key or ():
        _check_key_field(event, field, options)
    if options.topic is not None:
        check_topic(options.topic, where=options.where)


def _check_key_field(event: type[Message], name: str, options: EventOptions) -> None:
    fields = event.model_fields
    if name not in fields:
        near = nearest(name, fields)
        raise DefinitionError(
            f"{event.__name__} says key={name!r}, but has no such field.",
            where=options.where,
            why=f"It has: {', '.join(fields) or 'no fields'}.",
            fix=f"Did you mean key={near!r}?" if near else f"Add it: {name}: str",
        )
    for wrong in _no_keys_in(fields[name].annotation):
        raise DefinitionError(
            f"{event.__name__}.{name} is the event's key, and may be {_named(wrong)}, which cannot be one.",
            where=options.where,
            why=WHAT_A_KEY_IS,
            fix=f"{name}: str",
        )


_NEVER_A_KEY = (
    bool, float, complex, Decimal, bytes, date, datetime, time, timedelta,
    list, tuple, set, frozenset, dict, BaseModel, types.NoneType,
)  # fmt: skip


def _no_keys_in(annotation: Any) -> Iterator[Any]:
    # Only what can never be a key is told: a type with a validator of its own may well hold a str.
    origin = typing.get_origin(annotation)
    if origin in {Union, types.UnionType}:
        for each in typing.get_args(annotation):
            yield from _no_keys_in(each)
    elif origin is Annotated:
        yield from _no_keys_in(typing.get_args(annotation)[0])
    elif isinstance(origin or annotation, type):
        kind = origin or annotation
        if issubclass(kind, Enum):
            yield from (type(each.value) for each in kind if not _can_be_key(each.value))
        elif issubclass(kind, _NEVER_A_KEY):
            yield kind


def _can_be_key(value: object) -> bool:
    return isinstance(value, str | int | UUID) and not isinstance(value, bool)


def _named(kind: type) -> str:
    return "None" if kind is types.NoneType else f"a {kind.__name__}"


_TOPIC = re.compile(r"[a-zA-Z0-9._-]{1,249}")


def check_topic(topic: str, *, where: str) -> None:
    """Raise DefinitionError for a name that Kafka refuses, or would refuse beside another one."""
    why = None
    if not _TOPIC.fullmatch(topic) or topic in {".", ".."}:
        why = "Kafka takes 1 to 249 letters, digits, '.', '_' and '-'."
    elif "." in topic and "_" in topic:
        why = "Kafka's metrics cannot tell '.' from '_', so a name has one or the other."
    elif topic.startswith("__"):
        why = "Names that begin with '__' are Kafka's own."
    if why is not None:
        raise DefinitionError(f"{topic!r} is no topic name.", where=where, why=why, fix='For example: topic="payments"')
