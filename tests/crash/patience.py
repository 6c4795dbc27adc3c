"""How a test waits for what real processes do, on a machine that is busy with other things."""

from __future__ import annotations

import time
from collections.abc import Callable

POLL = 0.02
SHARE = 0.5
"""How much longer than it looks a test leaves those alone whom it looks at: looking at everything takes a processor."""


def wait_until(
    condition: Callable[[], object],
    what: str,
    *,
    at_most: float,
    story: Callable[[], str],
    moved: Callable[[], object] = lambda: None,
) -> float:
    """Wait until a condition holds; return how many seconds that took.

    Fails with what was waited for, and its story, `at_most` seconds after what `moved` returns has changed last: who is
    slow is not stuck.
    """
    begun = since = time.monotonic()
    place: object = None
    while True:
        asked = time.monotonic()
        if condition():
            return time.monotonic() - begun
        if (now := moved()) != place:
            place, since = now, time.monotonic()
        if time.monotonic() - since > at_most:
            raise AssertionError(f"not after {at_most} s: {what}\n{story()}")
        time.sleep(max(POLL, SHARE * (time.monotonic() - asked)))
