"""Whether to use colours: `NO_COLOR`, `FORCE_COLOR`, and what the output is."""

from __future__ import annotations

import os
from typing import TextIO


def wants_colour(stream: TextIO) -> bool:
    """Colours on a terminal that can show them; `NO_COLOR` forbids them, `FORCE_COLOR` asks for them anywhere."""
    if os.environ.get("NO_COLOR"):
        return False
    if os.environ.get("FORCE_COLOR"):
        return True
    return stream.isatty() and os.environ.get("TERM") != "dumb"
