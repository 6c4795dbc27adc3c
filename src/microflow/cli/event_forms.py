"""The form of an event that a person types: which fields it has, which key, which topic."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from microflow.decoding import decode
from microflow.errors import ContractError, DecodeError, TargetError, nearest
from microflow.events import WHAT_A_KEY_IS, Message, check_topic, options_of
from microflow.keywords import is_type_name
from microflow.service import Definition, topic_of
from microflow.targets import Target

Fields = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Form:
    """How events of one type are written. `classes` type its fields; `key` are the fields of its key, by their names
    on the wire, None if nobody said."""

    event_type: str
    topic: str
    classes: tuple[type[Message], ...] = ()
    key: tuple[str, ...] | None = None
    key_is_tuple: bool = False
    target: str | None = None

    def typed(self, fields: Fields) -> dict[str, Any]:
        """The fields as their classes type them; those that no class knows as they are. Raises DecodeError."""
        typed = dict(fields)
        value = json.dumps(typed).encode()
        for each in self.classes:
            event = decode(each, value, None)
            typed |= json.loads(event.__pydantic_serializer__.to_json(event, by_alias=True, exclude_unset=True))
        return typed

    def key_of(self, fields: Fields) -> str:
        """The key of an event with these fields. Raises ContractError if there is none."""
        if not self.key or "" in self.key:
            raise _no_key(self.event_type, fields, self.target)
        texts = [_key_text(self.event_type, name, fields) for name in self.key]
        return json.dumps(texts, separators=(",", ":"), ensure_ascii=False) if self.key_is_tuple else texts[0]


def read_fields(arguments: Sequence[str]) -> dict[str, Any]:
    """`field=text` and `field:=json` as fields. Raises ContractError for anything else."""
    fields: dict[str, Any] = {}
    for argument in arguments:
        name, separator, text = argument.partition("=")
        as_json = name.endswith(":")
        name = name.removesuffix(":")
        if not separator or not name:
            raise ContractError(f"{argument!r} sets no field.", fix="FIELD=VALUE, or FIELD:=JSON")
        if name in fields:
            raise ContractError(
                f"{name} is set twice.", why="Which one is meant?", fix=f"For several values:  {name}:='[1, 2]'"
            )
        fields[name] = _json(name, text) if as_json else text
    return fields


def read_json(text: str | bytes) -> Any:
    """A JSON value; ValueError for what is none or cannot be written again, also for the NaN that Python would take."""
    try:
        value = json.loads(text, parse_constant=_refuse_constant)
        json.dumps(value, ensure_ascii=False).encode()
    except RecursionError as cause:
        raise ValueError("it is nested too deeply") from cause
    except UnicodeEncodeError as cause:
        half = ascii(cause.object[cause.start])[1:-1]
        raise ValueError(f"{half} is half a character, which UTF-8 does not have") from cause
    except ValueError as cause:
        if "set_int_max_str_digits" in str(cause):
            raise ValueError(f"a number has more than {sys.get_int_max_str_digits()} digits") from cause
        raise
    return value


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON number")


def _json(name: str, text: str) -> Any:
    try:
        return read_json(text)
    except ValueError as cause:
        raise ContractError(
            f"{name}:={text} is no JSON: {cause}.",
            fix=f"For text:  {name}={text}   or quote it:  {name}:='{{\"a\": 1}}'",
        ) from cause


def form_without_target(event_type: str, *, key: str | None, topics: Mapping[str, str]) -> Form:
    """The form of a type that no target describes: its fields are what was typed."""
    if not is_type_name(event_type):
        raise ContractError(f"{event_type!r} is no type of an event.", fix="microflow emit OrderAccepted order_id=o-1")
    topic = topics.get(event_type, event_type)
    check_topic(topic, where=event_type)
    return Form(event_type, topic, key=None if key is None else (key,))


def form_of_target(
    event_type: str, target: Target, definition: Definition, *, key: str | None, topics: Mapping[str, str]
) -> Form:
    """The form of a type as a service knows it. Raises TargetError if it does not."""
    read = [
        (handler.event_class, trigger.topic)
        for handler in definition.handlers
        for trigger in handler.triggers
        if trigger.event_type == event_type
    ]
    emitted = [(each, topic) for each, topic in definition.emitted.items() if options_of(each).type == event_type]
    written = [(each, topic_of(each, topics)) for each in _classes(target) if options_of(each).type == event_type]
    known = [*read, *emitted, *written]
    if not known:
        raise _unknown(event_type, target, definition)
    # What reads it decides which fields it must have; who only emits it may put more into it than a person types.
    classes = tuple(dict.fromkeys(each for each, _ in read or known[:1]))
    keyed = next((each for each, _ in known if options_of(each).key), None)
    if key is not None or keyed is None:
        return Form(event_type, known[0][1], classes, None if key is None else (key,), target=target.text)
    options = options_of(keyed)
    names = tuple(_name_on_the_wire(keyed, name) for name in options.key or ())
    return Form(event_type, known[0][1], classes, names, options.key_is_tuple)


def _classes(target: Target) -> list[type[Message]]:
    return [each for each in vars(target.module).values() if isinstance(each, type) and issubclass(each, Message)]


def _name_on_the_wire(event: type[Message], name: str) -> str:
    field = event.model_fields.get(name)
    return (field.serialization_alias or field.alias or name) if field is not None else name


def _unknown(event_type: str, target: Target, definition: Definition) -> TargetError:
    known = {trigger.event_type for handler in definition.handlers for trigger in handler.triggers}
    known |= {options_of(each).type for each in definition.emitted}
    near = nearest(event_type, known)
    return TargetError(
        f"{target.text} neither handles nor emits {event_type}.",
        why=f"It knows {', '.join(sorted(known))}.",
        fix=f"Did you mean {near}?" if near else "Leave --app out to send it all the same.",
    )


def _no_key(event_type: str, fields: Fields, target: str | None) -> ContractError:
    likely = next((name for name in fields if name == "id" or name.endswith("_id")), next(iter(fields), None))
    if target is not None:
        return ContractError(
            f"{event_type} needs a key, and its class in {target} names none: only who emits a type has to.",
            fix=f"Add  --key {likely or 'FIELD'}",
        )
    return ContractError(
        f"{event_type} needs a key: the field whose value keeps its events in order.",
        fix=f"microflow emit {event_type} … --key {likely or 'FIELD'}     or --app TARGET, if its class says it",
    )


def _key_text(event_type: str, name: str, fields: Fields) -> str:
    value = fields.get(name)
    if value == "":
        raise ContractError(
            f"{name} is the key of {event_type}, and it is empty.",
            why="All events with an empty key would wait for each other.",
            fix=f"{name}=…",
        )
    if isinstance(value, str | int) and not isinstance(value, bool):
        return str(value)
    if name in fields:
        raise ContractError(f"{name} is the key of {event_type}, and {value!r} cannot be one.", why=WHAT_A_KEY_IS)
    near = nearest(name, fields)
    raise ContractError(
        f"{event_type} has no field {name}, which is its key.",
        why=f"It has {', '.join(fields)}." if fields else "It has no fields.",
        fix=f"Did you mean {near}?" if near else f"microflow emit {event_type} {name}=…",
    )


def misfit(error: DecodeError | ContractError, place: str) -> ContractError:
    """An error in a line of a file, told with the file and the line."""
    return ContractError(error.what, where=place, why=error.why, fix="Nothing was published.")
