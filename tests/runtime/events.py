"""The events that the handlers of these tests handle and emit. Those of one order share its key."""

from __future__ import annotations

from microflow.events import Event


class Placed(Event, key="order"):
    order: str
    number: int = 0


class Cancelled(Event, key="order"):
    order: str


class Accepted(Event, key="order"):
    order: str
    number: int = 0


class Rejected(Event, key="order"):
    order: str


class Large(Event, key="order"):
    order: str
    text: str
