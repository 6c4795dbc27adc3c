"""Garbage: a process that does nothing but serve looks for cycles less often than Python does by itself."""

from __future__ import annotations

import gc

OBJECTS = 50_000
"""Python looks after 700 new objects, and a batch of 500 events has tens of thousands, none of them in a cycle."""


def collect_seldom() -> None:
    """Take a fifth off what an event costs. To be called once the services are loaded: what is there now stays."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(OBJECTS, 20, 50)
