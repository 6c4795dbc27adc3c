"""Adoption: what becomes of the executions whose partition is taken away while they are under way.

No handler is cancelled. If the partition comes back, the redelivered event adopts what runs or has run; if not, the
result is dropped, and the key stays closed in this process until the execution has ended.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping

from microflow.deliveries import FINISHED, WAITING, Execution, Inside
from microflow.ownership import Assignment
from microflow.ports import Blocked, ClaimKey, TopicPartition


class Adoption:
    """Everything that is under way in a lane, by claim, and who of it is an orphan.

    `submit`, `remove` and `finish` are the lane's: take executions in, take one out of its queue, commit one.
    `dropped` is called for an orphan that has ended in vain.
    """

    def __init__(
        self,
        assignment: Assignment,
        *,
        submit: Callable[[Iterable[Execution]], None],
        remove: Callable[[Execution], None],
        finish: Callable[[Execution], None],
        dropped: Callable[[Execution], None],
    ) -> None:
        self._assignment = assignment
        self._submit = submit
        self._remove = remove
        self._finish = finish
        self._dropped = dropped
        self._under_way: dict[ClaimKey, Execution] = {}
        self._rebalancing = False

    @property
    def is_anything_under_way(self) -> bool:
        return bool(self._under_way)

    def begin(self, execution: Execution) -> None:
        """It is under way from now on."""
        self._under_way[execution.claim_key] = execution

    def end(self, execution: Execution) -> None:
        """It is not under way any more. One that nobody may adopt was not before."""
        if self._under_way.get(execution.claim_key) is execution:
            del self._under_way[execution.claim_key]

    # ── partitions come and go ────────────────────────────────────────────────────────────────────────────────────

    def lose(self, partitions: Collection[TopicPartition], *, running: Collection[Execution]) -> None:
        """Partitions were taken away: what waits is forgotten, what runs or has run becomes an orphan."""
        self._rebalancing = True
        for execution in list(self._under_way.values()):
            end(each for each in execution.repeats if each.delivery.home in partitions)
            execution.repeats = [each for each in execution.repeats if each.delivery.home not in partitions]
            if execution.delivery.home not in partitions:
                continue
            has_run = execution in running or (
                execution.outcome is not None and not isinstance(execution.outcome, Inside) and not execution.stranger
            )
            if execution.state is WAITING or not has_run:
                self._remove(execution)
                self._submit(execution.repeats)
                continue
            execution.orphan = True
            if execution.recalled:
                self.abandon(execution)

    def keep(self, starts: Mapping[TopicPartition, int], *, others: Collection[TopicPartition] = ()) -> None:
        """The partitions of a new assignment, and where they are read from: who else is an orphan waits in vain.

        `others` are not the partitions that they were: what ran of those comes back with no record.
        """
        self._rebalancing = False
        for execution in list(self._under_way.values()):
            start = starts.get(execution.delivery.home)
            redelivered = (
                start is not None
                and execution.delivery.record.offset >= start
                and execution.delivery.home not in others
                and execution.parked is None
            )
            if execution.orphan and not redelivered:
                self.abandon(execution)

    # ── what becomes of an orphan ─────────────────────────────────────────────────────────────────────────────────

    def joins(self, execution: Execution, holding: Blocked | None) -> bool:
        """Whether its event is under way already: an orphan is adopted, a repetition waits for the first one's end."""
        other = self._under_way.get(execution.claim_key)
        if other is None:
            return False
        if other.orphan and _is_overtaken(execution, holding):
            self.abandon(other)
            return False
        if not other.orphan:
            other.repeats.append(execution)
            return True
        other.orphan = False
        other.delivery = execution.delivery
        if other.state is FINISHED:
            self._finish(other)
        return True

    def make_way(self, execution: Execution, queue: Iterable[Execution]) -> None:
        """Abandon the orphans of a queue that come after an execution that has to run.

        They ran before their turn. And the record that would adopt them may be held back until this one has ended.
        """
        for other in list(queue):
            if other.orphan and not other.obsolete and _comes_first(execution, other):
                self.abandon(other)

    def settled_elsewhere(self, execution: Execution) -> None:
        """Its event has a claim already: an orphan of it will never be adopted."""
        other = self._under_way.get(execution.claim_key)
        if other is not None and other.orphan:
            self.abandon(other)

    def outlived(self, orphan: Execution) -> None:
        """An orphan has ended. It waits to be adopted as long as its partition may come back."""
        may_return = self._rebalancing or self._assignment.owns(orphan.delivery.home)
        if orphan.obsolete or not may_return:
            self.abandon(orphan)

    def abandon(self, orphan: Execution) -> None:
        """Let nobody adopt it any more. While it still runs it keeps its key closed; a redelivery waits behind it."""
        if not orphan.obsolete:
            orphan.obsolete = True
            del self._under_way[orphan.claim_key]
            self._submit(orphan.repeats)
            orphan.repeats.clear()
        if orphan.state is FINISHED:
            self._remove(orphan)
            self._dropped(orphan)


def end(executions: Iterable[Execution]) -> None:
    """A lane is done with them, whatever became of them."""
    for execution in executions:
        execution.ended = True


def _comes_first(execution: Execution, orphan: Execution) -> bool:
    """Whether an execution comes before an orphan of its key: what is parked has been waiting already."""
    here, there = execution.delivery, orphan.delivery
    return execution.parked is not None or (here.source == there.source and here.record.offset < there.record.offset)


def _is_overtaken(execution: Execution, holding: Blocked | None) -> bool:
    """Whether another process has parked the event, or one that it must wait for, since an orphan of it began."""
    if execution.parked is not None:
        return True
    if holding is None or execution.handler is None:
        return False
    return holding.all_handlers or execution.handler.name in holding.handlers
