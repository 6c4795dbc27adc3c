"""Killing a process at a fault point, to see what is left: `MICROFLOW_FAULT="after commit:3"`."""

from __future__ import annotations

import logging
import os
import signal
from typing import get_args

from microflow.errors import SettingsError
from microflow.faults import FaultPoint, Reach, pass_by

logger = logging.getLogger("microflow.fault_injection")

SIGNALS = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP}


def read_fault(specification: str) -> Reach:
    """`POINT:N[:ACTION],…`: at the N-th time that POINT is reached the process gets SIGKILL, or with `stop` SIGSTOP.

    Raises SettingsError for a point that does not exist. An empty specification harms nothing.
    """
    if not specification:
        return pass_by
    logger.warning("fault injection is on: %s", specification)
    armed = [_read(each.strip()) for each in specification.split(",")]
    reached: dict[FaultPoint, int] = {}

    def reach(point: FaultPoint) -> None:
        reached[point] = reached.get(point, 0) + 1
        for at, count, action in armed:
            if at == point and count == reached[point]:
                os.kill(os.getpid(), action)

    return reach


def _read(text: str) -> tuple[FaultPoint, int, signal.Signals]:
    point, _, rest = text.partition(":")
    count, _, action = rest.partition(":")
    number = int(count or 1) if (count or "1").isdecimal() else 0
    for known in get_args(FaultPoint):
        if known == point and number > 0 and (action or "kill") in SIGNALS:
            return known, number, SIGNALS[action or "kill"]
    raise SettingsError(
        f"MICROFLOW_FAULT: {text!r} is no fault.",
        why=f"The points are {', '.join(get_args(FaultPoint))}.",
        fix='MICROFLOW_FAULT="after commit:3"',
    )
