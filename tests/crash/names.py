"""The names of one chain: many chains stand on the same servers at once, so each puts a word before all of its own."""

from __future__ import annotations

_prefix = ""


def begin_with(prefix: str) -> None:
    """From now on, in this process, names begin so. The services' modules are imported after this."""
    global _prefix
    _prefix = prefix


def called(name: str) -> str:
    """What a topic or service is called."""
    return f"{_prefix}{name}"
