"""Events and commands: what a service's author declares, and where and under which key it travels."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any, ClassVar
from uuid import UUID

from pydantic import BaseModel, ConfigDict

from microflow.errors import ContractError, DefinitionError
from microflow.places import calling_place


@dataclass(frozen=True, slots=True)
class EventOptions:
    """The class keywords of an event, its own and inherited ones together."""

    type: str
    key: tuple[str, ...] | None = None
    key_is_tuple: bool = False
    topic: str | None = None
    external: bool = False
    where: str = ""


class Message(BaseModel):
    """What `Event` and `Command` share: frozen, compared by its fields, unknown fields ignored when read."""

    model_config = ConfigDict(frozen=True, extra="ignore", ser_json_inf_nan="strings")

    # One attribute with dunders holds every keyword, so that no field a user may think of collides with it.
    __microflow__: ClassVar[EventOptions] = EventOptions(type="Message")

    def __init_subclass__(
        cls,
        *,
        key: str | Sequence[str] | None = None,
        topic: str | None = None,
        type: str | None = None,  # noqa: A002 - the word of CloudEvents
        external: bool | None = None,
        **misspelt: Any,
    ) -> None:
        super().__init_subclass__()
        where = calling_place()
        if misspelt:
            known = "key, topic, type, external"
            raise DefinitionError(
                f"{cls.__name__} has an unknown keyword: {', '.join(sorted(misspelt))}.",
                where=where,
                fix=f'An event\'s keywords are {known}, for example: class {cls.__name__}(Event, key="order_id")',
            )
        options = replace(cls.__microflow__, type=type or cls.__name__, where=where)
        if key is not None:
            options = replace(
                options, key=(key,) if isinstance(key, str) else tuple(key), key_is_tuple=not isinstance(key, str)
            )
        if topic is not None:
            options = replace(options, topic=topic)
        if external is not None:
            options = replace(options, external=external)
        cls.__microflow__ = options


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
    parts = [_key_text(event, field) for field in options.key]
    return json.dumps(parts, separators=(",", ":"), ensure_ascii=False) if options.key_is_tuple else parts[0]


def _key_text(event: Message, field: str) -> str:
    value = getattr(event, field)
    if isinstance(value, Enum):
        value = value.value
    if isinstance(value, str | int | UUID) and not isinstance(value, bool):
        return str(value)
    raise ContractError(
        f"{type(event).__name__}.{field} is the event's key, and {value!r} cannot be one.",
        where=event.__microflow__.where,
        why="A key is a str, an int, a UUID or an enum of these; it decides what is kept in order.",
    )


def check_event_class(event: type[Message]) -> None:
    """Raise DefinitionError if an event class names a key field it does not have or a topic Kafka would refuse."""
    options = options_of(event)
    for field in options.key or ():
        if field not in event.model_fields:
            raise DefinitionError(
                f"{event.__name__} says key={field!r}, but has no such field.",
                where=options.where,
                fix=f"It has: {', '.join(event.model_fields) or 'no fields'}.",
            )
    if options.topic is not None:
        check_topic(options.topic, where=options.where)


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
