"""A key's queue: its executions in order, and which of them must wait because an earlier event of the key is parked."""

from __future__ import annotations

from collections import deque
from itertools import islice

from microflow.deliveries import RUNNING, WAITING, Execution, Failed, Inside, Postponed
from microflow.ports import Blocked

MUST_BE_COMMITTED = (Failed, Inside)
"""After these the next execution of the key waits for the commit."""
NO_HANDLERS: frozenset[str] = frozenset()


class KeyQueue:
    """The executions of one key, in order, and what of the key is parked."""

    def __init__(self) -> None:
        self.executions: deque[Execution] = deque()
        self.blocked_all = False
        self.blocked_handlers = NO_HANDLERS
        self._passed = 0  # of the first ones so many keep nobody waiting; a key may have dozens of them

    def learn(self, blocked: Blocked | None) -> None:
        """Take over what the store knows, and what is postponed here and not yet committed."""
        self.blocked_all = blocked is not None and blocked.all_handlers
        self.blocked_handlers = blocked.handlers if blocked is not None else NO_HANDLERS
        for execution in self.executions:
            if isinstance(execution.outcome, Postponed):
                self.block(execution)

    def block(self, execution: Execution) -> None:
        """An execution is, or will be, parked."""
        if execution.order == "key":
            self.blocked_all = True
        elif execution.order == "handler":
            self.blocked_handlers |= {execution.claim_key.handler}

    def blocks(self, execution: Execution) -> bool:
        if execution.parked is not None or execution.handler is None:
            return False
        return self.blocked_all or execution.handler.name in self.blocked_handlers

    def narrows(self, execution: Execution) -> bool:
        """Whether one that must wait does so for its own handler: an earlier event is parked for that one only."""
        return execution.claim_key.handler in self.blocked_handlers

    def remove(self, execution: Execution) -> None:
        """A lane is done with an execution."""
        if self.executions[0] is execution:
            self.executions.popleft()
            self._passed = max(self._passed - 1, 0)
        else:
            self.executions.remove(execution)
            self.look_again()

    def look_again(self) -> None:
        """One that had finished has failed after all, or waits again."""
        self._passed = 0

    def behind(self, execution: Execution) -> list[Execution]:
        """Those that come after one."""
        everybody = list(self.executions)
        return everybody[everybody.index(execution) + 1 :]

    def next(self) -> Execution | None:
        """The execution whose turn it is; None while an earlier one runs, or must be committed first."""
        for execution in islice(self.executions, self._passed, None):
            state = execution.state
            if state is WAITING:
                return execution
            if state is RUNNING or isinstance(execution.outcome, MUST_BE_COMMITTED):
                return None
            if execution.delivery.mark is not None:  # the next one may end the process, and this one's result with it
                return None
            self._passed += 1
        return None
