"""What the nouns of the runtime share: one service at work in one process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from microflow.circuits import Circuits
from microflow.dead_letter_copies import Copies
from microflow.dead_letters import judge
from microflow.deadlines import Deadlines
from microflow.deliveries import Execution, Failed
from microflow.execution import Executor
from microflow.faults import Reach
from microflow.limits import Limits
from microflow.outages import Outages
from microflow.outgoing import Outgoing
from microflow.ownership import Assignment
from microflow.ports import Clock, Store
from microflow.registration import Registration
from microflow.reports import Observe
from microflow.service import Definition
from microflow.tracing import Attempt, Tracing
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
    circuits: Circuits
    outgoing: Outgoing
    copies: Copies
    registration: Registration
    tracing: Tracing
    observe: Observe
    reach: Reach

    def judge(self, execution: Execution, error: BaseException) -> Failed:
        """What becomes of an execution that has failed now, by its handler's retry policy or the service's."""
        return judge(
            execution,
            error,
            service_retry=self.definition.retry,
            now=self.clock.now(),
            chance=self.chance(),
        )

    def begin_attempt(self, execution: Execution) -> Attempt | None:
        """The span of an attempt that begins now. What an earlier one did, that was not told, is undone."""
        handler, delivery = execution.handler, execution.delivery
        assert handler is not None
        if execution.trace is not None:
            execution.trace.roll_back()
        execution.trace = self.tracing.begin(
            delivery.record, delivery.envelope, handler, attempt=execution.attempt, parked=execution.parked
        )
        return execution.trace
