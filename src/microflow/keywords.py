"""The class keywords of an event: `class PaymentReceived(Event, key="order_id", topic="payments")`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from microflow.errors import DefinitionError, refuse_unknown


@dataclass(frozen=True, slots=True)
class EventOptions:
    """The class keywords of an event, its own and inherited ones together. `said` names its own."""

    type: str
    key: tuple[str, ...] | None = None
    key_is_tuple: bool = False
    topic: str | None = None
    external: bool = False
    where: str = ""
    said: frozenset[str] = frozenset()


KEYWORDS = ("key", "topic", "type", "external")


def read_keywords(cls: type, given: Mapping[str, Any], misspelt: Iterable[str], *, where: str) -> EventOptions:
    """The keywords of a class: those given (None: not given), and those it inherits.

    Raises DefinitionError for a keyword that is misspelt or holds what it cannot hold.
    """
    example = f'For example: class {cls.__name__}(Event, key="order_id")'
    refuse_unknown(f"class {cls.__name__}", list(misspelt), KEYWORDS, where=where, example=example)
    own = {word: value for word, value in given.items() if value is not None}
    _check(cls.__name__, own, where)
    if "key" in own:
        key = own["key"]
        own["key_is_tuple"] = not isinstance(key, str)
        own["key"] = (key,) if isinstance(key, str) else tuple(key)
    words = {"type": cls.__name__, **_inherited(cls), **own}
    return EventOptions(**words, where=where, said=frozenset(own))


def _check(name: str, given: Mapping[str, Any], where: str) -> None:
    key = given.get("key", "order_id")
    fields = (key,) if isinstance(key, str) else key
    if not isinstance(fields, Sequence) or not fields or not all(isinstance(each, str) for each in fields):
        wrong, fix = f"key={key!r}", f'class {name}(Event, key="order_id"), or key=("shop", "order_id")'
    elif not isinstance(topic := given.get("topic", ""), str):
        wrong, fix = f"topic={topic!r}", f'class {name}(Event, topic="orders")'
    elif not is_type_name(event_type := given.get("type", name)):
        wrong, fix = f"type={event_type!r}", f'class {name}(Event, type="com.example.{name}")'
    elif not isinstance(external := given.get("external", False), bool):
        wrong, fix = f"external={external!r}", f"class {name}(Event, external=True)"
    else:
        return
    raise DefinitionError(f"class {name} says {wrong}, which makes no sense.", where=where, fix=f"For example: {fix}")


def is_type_name(value: object) -> bool:
    """Whether a value can be an event's type: printable text of reasonable length."""
    return isinstance(value, str) and 0 < len(value) <= 255 and value.isprintable() and value.strip() == value


def _inherited(cls: type) -> dict[str, Any]:
    # Not one base's options as a whole: with several bases each keyword comes from the nearest class that says it.
    inherited: dict[str, Any] = {}
    for base in cls.__mro__[1:]:
        options = base.__dict__.get("__microflow__")
        for word in options.said - {"type"} if options is not None else ():
            inherited.setdefault(word, getattr(options, word))
    return inherited
