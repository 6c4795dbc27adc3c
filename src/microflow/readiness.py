"""Readiness: whether a running service can be given work, and by which bounds it is held back."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Readiness:
    """`missing` is what keeps the service from working, one sentence each. `limited` are its caps that are reached and
    its circuits that are open: they are told, and keep nothing from being ready.

    How far it is behind is no part of it: a service that has much to do is needed most.
    """

    missing: tuple[str, ...] = ()
    limited: tuple[str, ...] = ()

    @property
    def ready(self) -> bool:
        return not self.missing
