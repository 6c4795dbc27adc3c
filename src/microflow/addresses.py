"""Addresses of logs and databases as they may be shown: whatever is printed or logged, a password is never in it."""

from __future__ import annotations

import re

MASK = "…"

_SECRET = re.compile(r"(?P<name>[^&?=]*(?:password|passwd|secret|token)[^&=]*)=[^&]*", re.IGNORECASE)
_IN_WORDS = re.compile(r"\b[a-z][a-z0-9+.-]*://[^\s'\"]+", re.IGNORECASE)


def masked(address: str) -> str:
    """An address without the password before its `@` and without the parameters that are secrets."""
    scheme, separator, rest = address.partition("://")
    if not separator:
        return address
    # Everything before the last @: a password that was not quoted may hold one, and a slash or a question mark too.
    user, at, place = rest.rpartition("@")
    if at:
        name, colon, _ = user.partition(":")
        user = f"{name}{colon}{MASK if colon else ''}{at}"
    place, question, parameters = place.partition("?")
    parameters = _SECRET.sub(rf"\g<name>={MASK}", parameters)
    return f"{scheme}://{user}{place}{question}{parameters}"


def masked_in(text: str) -> str:
    """A text, such as a driver's error, with every address in it masked."""
    return _IN_WORDS.sub(lambda found: masked(found[0]), text)
