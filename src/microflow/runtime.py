"""What the nouns of the runtime share: one service at work in one process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from microflow.deadlines import Deadlines
from microflow.execution import Executor
from microflow.faults import Reach
from microflow.limits import Limits
from microflow.outages import Outages
from microflow.ownership import Assignment
from microflow.ports import Clock, Store
from microflow.reports import Observe
from microflow.service import Definition
from microflow.watermarks import Watermarks


@dataclass(frozen=True, slots=True)
class Runtime:
    """`chance` returns a random number in [0, 1); `reach` is told of fault points, `observe` of ended executions."""

    definition: Definition
    store: Store
    clock: Clock
    chance: Callable[[], float]
    limits: Limits
    executor: Executor
    assignment: Assignment
    watermarks: Watermarks
    deadlines: Deadlines
    outages: Outages
    observe: Observe
    reach: Reach
