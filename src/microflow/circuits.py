"""Circuits: a handler that fails for one key after the other is not given the rest of the world to fail with.

What fails then is not the events but something that the handler calls. Its circuit opens: what it has not begun waits
in its lane, unexecuted and uncounted, and the topics that it reads pause. After a while one event tries; if it
succeeds, everything goes on, and if it fails, the next try comes later. Other handlers see nothing of it, except those
that read the same topics.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TypeAlias

from microflow.dead_letters import describe
from microflow.deliveries import Execution, Failed, Succeeded
from microflow.errors import ContractError, Reject
from microflow.handlers import Handler
from microflow.ports import Clock, OrderingKey
from microflow.signals import Signal

logger = logging.getLogger("microflow.circuits")

FIRST_REST = timedelta(seconds=1)
LONGEST_REST = timedelta(seconds=30)

Queue: TypeAlias = OrderingKey | bytes


@dataclass(slots=True)
class _Circuit:
    """What is known of one handler. `failing` are the keys that it fails for since it last returned, `refused` those of
    which the database would not take what it returned, since it last took something. While it is open it rests until an
    instant; then one event tries, if there is one: without one it is in want."""

    handler: Handler
    failing: set[Queue] = field(default_factory=set)
    refused: set[Queue] = field(default_factory=set)
    is_open: bool = False
    rests_until: timedelta | None = None
    rest: timedelta = FIRST_REST
    trying: Execution | None = None
    is_in_want: bool = False
    waiting: dict[Queue, Callable[[Queue], None]] = field(default_factory=dict)
    error: str = ""

    @property
    def in_a_row(self) -> int:
        return max(len(self.failing), len(self.refused))

    @property
    def topics(self) -> frozenset[str]:
        return frozenset(trigger.topic for trigger in self.handler.triggers)


class Circuits:
    """The circuits of a service's handlers in this process. `changed` is called when topics pause or go on."""

    def __init__(
        self,
        handlers: Iterable[Handler],
        *,
        failures: int,
        clock: Clock,
        chance: Callable[[], float],
        changed: Callable[[], None],
    ) -> None:
        self._failures = failures
        self._clock = clock
        self._chance = chance
        self._changed = changed
        self._circuits = {handler.name: _Circuit(handler) for handler in handlers}
        self._open: dict[str, _Circuit] = {}
        self._troubled: set[str] = set()
        self._signal = Signal(clock)

    # ── what others ask ───────────────────────────────────────────────────────────────────────────────────────────

    @property
    def topics(self) -> Collection[str]:
        """The topics that pause: there is nobody to handle what they hold."""
        return frozenset(topic for each in self._open.values() if not each.is_in_want for topic in each.topics)

    @property
    def open(self) -> Collection[str]:
        """The handlers whose circuit is open."""
        return self._open.keys()

    @property
    def in_want(self) -> Collection[str]:
        """Those of them that would try now, and have nothing to try it with: it has to be read, or resumed."""
        return [name for name, each in self._open.items() if each.is_in_want]

    def topics_of(self, handler: str) -> frozenset[str]:
        """The topics that a handler reads."""
        return self._circuits[handler].topics

    def error_of(self, handler: str) -> str:
        """Why a handler's circuit is open."""
        return self._circuits[handler].error

    def hold(self, queues: Iterable[Queue]) -> bool:
        """Whether all of these wait for a circuit."""
        waiting = {queue for each in self._open.values() for queue in each.waiting}
        return waiting.issuperset(queues)

    # ── what a lane asks and tells ────────────────────────────────────────────────────────────────────────────────

    def bars(self, execution: Execution, go_on: Callable[[Queue], None] | None = None, *, may_try: bool = True) -> bool:
        """Whether an execution may not begin now. `go_on` is called with its queue when it is to be asked again."""
        if not self._open or execution.handler is None:
            return False
        circuit = self._open.get(execution.handler.name)
        # Whoever handles events one at a time after a death cannot wait with one of them.
        if circuit is None or execution is circuit.trying or execution.delivery.mark is not None:
            return False
        if may_try and circuit.rests_until is None and (circuit.trying is None or circuit.trying.ended):
            circuit.trying = execution
            circuit.is_in_want = False
            self._changed()
            return False
        if go_on is not None:
            circuit.waiting[execution.delivery.queue] = go_on
        return True

    def ran(self, execution: Execution) -> None:
        """A handler has returned. Hundreds may have by the time that the first of them is committed."""
        if execution.handler is not None and execution.handler.name in self._troubled:
            self._circuits[execution.handler.name].failing.clear()

    def failed(self, execution: Execution, outcome: Failed, *, returned: bool = False) -> None:
        """A handler has failed, or what it `returned` was refused. That it refuses an event, or cannot read it, is that
        event's own fault."""
        if execution.handler is None:
            return
        circuit = self._circuits[execution.handler.name]
        is_own_fault = isinstance(outcome.error, Reject | ContractError)
        if circuit.is_open:
            if execution is circuit.trying:
                circuit.trying = None
                if is_own_fault:
                    self._let_try(circuit)
                else:
                    circuit.rest = min(circuit.rest * 2, LONGEST_REST)
                    self._rest(circuit, outcome)
        elif not is_own_fault and execution.attempt == 1:
            # What is tried again is what had failed: that all of it fails once more says nothing of the others.
            self._troubled.add(circuit.handler.name)
            (circuit.refused if returned else circuit.failing).add(execution.delivery.queue)
            if circuit.in_a_row >= self._failures:
                self._break(circuit, outcome)

    def learn(self, committed: Iterable[Execution]) -> None:
        """These have been committed; a success among them is a sign that its handler is well."""
        if not self._troubled:
            return
        for execution in committed:
            if execution.handler is None or not isinstance(execution.outcome, Succeeded):
                continue
            circuit = self._circuits[execution.handler.name]
            self._troubled.discard(circuit.handler.name)
            circuit.failing.clear()
            circuit.refused.clear()
            if circuit.is_open:
                self._close(circuit)

    async def run(self) -> None:
        """Let those try whose rest is over, until cancelled."""
        while True:
            ends = [each.rests_until for each in self._open.values() if each.rests_until is not None]
            tries = [each for each in self._open.values() if each.rests_until is None]
            soon = FIRST_REST if tries else None  # whoever tried may have been taken away
            wait = min(ends) - self._clock.monotonic() if ends else soon
            await self._signal.wait(at_most=wait)
            now = self._clock.monotonic()
            for circuit in tuple(self._open.values()):
                if circuit.rests_until is not None and circuit.rests_until <= now:
                    circuit.rests_until = None
                if circuit.rests_until is None:
                    self._let_try(circuit)

    # ── opening and closing ───────────────────────────────────────────────────────────────────────────────────────

    def _break(self, circuit: _Circuit, outcome: Failed) -> None:
        circuit.is_open = True
        circuit.rest = FIRST_REST
        self._open[circuit.handler.name] = circuit
        self._rest(circuit, outcome)
        logger.warning(
            "%s  %s has failed for %d keys in a row and rests, with what it reads: %s. The last error: %s. Nothing is "
            "parked or given up meanwhile; one event at a time tries again",
            circuit.handler.where,
            circuit.handler.name,
            circuit.in_a_row,
            ", ".join(sorted(circuit.topics)),
            circuit.error,
        )

    def _rest(self, circuit: _Circuit, outcome: Failed) -> None:
        circuit.error = describe(outcome.error).partition("\n")[0]
        # Not all processes at once, if it is the same thing that they wait for.
        circuit.rests_until = self._clock.monotonic() + circuit.rest * (0.75 + self._chance() / 2)
        circuit.is_in_want = False
        self._signal.set()
        self._changed()

    def _let_try(self, circuit: _Circuit) -> None:
        """Ask those who wait, one after the other, until one of them has begun."""
        if circuit.trying is not None and circuit.trying.ended:
            circuit.trying = None
        for queue, go_on in tuple(circuit.waiting.items()):
            if circuit.trying is not None:
                return
            del circuit.waiting[queue]  # it comes back, behind the others, if it may not try
            go_on(queue)
        if circuit.trying is None and not circuit.is_in_want:
            circuit.is_in_want = True
            self._changed()

    def _close(self, circuit: _Circuit) -> None:
        del self._open[circuit.handler.name]
        waiting = circuit.waiting
        self._circuits[circuit.handler.name] = _Circuit(circuit.handler)
        logger.warning("%s  %s succeeds again, and everything goes on", circuit.handler.where, circuit.handler.name)
        for queue, go_on in waiting.items():
            go_on(queue)
        self._changed()
