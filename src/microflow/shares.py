"""Shares: parked events of a handler that the owner of their partition does not have are run by a process that has it.

A handler's share of a partition is owned like a partition, under epochs of its own, by one process at a time. It is
taken when something in it is due and the partition's owner is of a version without the handler, or with one that does
not handle the event's type; or when nobody owns the partition any more, because its topic was made anew with fewer, or
the service does not read it now. It is given back when an owner comes that has the handler. Until then that owner
leaves these events alone.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from datetime import timedelta
from functools import partial
from typing import NamedTuple, TypeAlias

from microflow.caution import Caution
from microflow.deliveries import UNREADABLE
from microflow.handlers import Trigger
from microflow.ports import Owner, Parked, Registry, TopicPartition
from microflow.runtime import Runtime

AT_ONCE = 100

Share: TypeAlias = tuple[TopicPartition, str]
"""A partition, and a handler whose parked events of it are meant."""

Types: TypeAlias = frozenset[str] | None
"""Which types of events are meant; None: all."""

NO_TYPES: Types = frozenset()
NOBODY = Owner(0, None)


class Ground(NamedTuple):
    """Partitions, and the handlers whose parked events of them are meant."""

    partitions: Sequence[TopicPartition]
    handlers: Sequence[str]


def home_of(share: Share) -> TopicPartition:
    """Under what name a share is owned: that of a partition of a topic that cannot be, because of its space."""
    partition, handler = share
    return TopicPartition(f"{partition.topic} {handler}", partition.partition)


class Shares:
    """Which parked events this process runs, and under which homes.

    `type_here` says of which type a parked event is, if this process handles it.
    """

    def __init__(
        self, runtime: Runtime, *, owner: str, caution: Caution, type_here: Callable[[Parked], str | None]
    ) -> None:
        self._runtime = runtime
        self._owner = owner
        self._caution = caution
        self._type_here = type_here
        own = {handler.name: frozenset(_types(handler.triggers)) for handler in runtime.definition.handlers}
        self._types: Mapping[str, frozenset[str]] = {UNREADABLE: frozenset(), **own}
        self._ours: dict[TopicPartition, Share] = {}
        self._elsewhere: frozenset[Share] = frozenset()
        self._uncared: Mapping[Share, Types] = {}
        self._homeless: set[Share] = set()
        self._alone_since: dict[tuple[TopicPartition, int], timedelta] = {}

    # ── whose events are run here ─────────────────────────────────────────────────────────────────────────────────

    def grounds(self) -> list[Ground]:
        """Where this process looks for events that are due."""
        own = self._runtime.assignment.partitions
        if not self._elsewhere and not self._ours:
            return [Ground(list(own), list(self._types))] if own else []
        ours = {share for home, share in self._ours.items() if self._runtime.assignment.owns(home)}
        return _grounds((self._shares_of(own) - self._elsewhere) | ours)

    def ground_of(self, home: TopicPartition) -> list[Ground]:
        """Where the events are that are run under one home."""
        if home in self._ours:
            return _grounds([self._ours[home]])
        return _grounds(self._shares_of([home]) - self._elsewhere)

    def home_of(self, row: Parked) -> TopicPartition:
        """Under which home a parked event is run."""
        home = home_of((row.record.source, row.claim.handler))
        return home if home in self._ours else row.record.source

    def homeless(self) -> list[Ground]:
        """Where events may be that nobody runs: when some are due, these shares are worth being looked at."""
        return _grounds(self._homeless)

    @property
    def may_soon_change(self) -> bool:
        """Whether somebody is about to give something back: others what is ours to run, or this process a share whose
        events its owner runs as well, but for some types."""
        return bool(self._elsewhere) or any(
            self._uncared.get(share, NO_TYPES) is not None for share in self._ours.values()
        )

    @property
    def has_lost_some(self) -> bool:
        """Whether a fence has refused a share: somebody else has taken it."""
        return not all(self._runtime.assignment.owns(home) for home in self._ours)

    @property
    def next_look(self) -> timedelta | None:
        """When a partition will have been without an owner for so long that its events are looked for."""
        limit = self._runtime.limits.heartbeat
        now = self._runtime.clock.monotonic()
        return min((since + limit for since in self._alone_since.values() if now - since < limit), default=None)

    def _shares_of(self, partitions: Iterable[TopicPartition]) -> set[Share]:
        return {(partition, handler) for partition in partitions for handler in self._types}

    # ── looking who runs what ─────────────────────────────────────────────────────────────────────────────────────

    async def look(self, in_hand: Collection[TopicPartition]) -> None:
        """Take shares that nobody cares for and that have something due; give back those that somebody cares for.

        `in_hand` are the homes of what is being run: those are not given back yet.
        """
        runtime, insist = self._runtime, self._runtime.outages.insist
        owners = await insist(runtime.store.partitions.owners)
        registry = await self._registry(owners)
        self._ours = {home: share for home, share in self._ours.items() if runtime.assignment.owns(home)}
        living = registry.processes.keys() - {self._owner}
        taken = {home for home, each in owners.items() if each.owner in living}
        own = self._shares_of(runtime.assignment.partitions)
        self._elsewhere = frozenset(share for share in own if home_of(share) in taken)
        self._uncared = uncared = dict(self._find_uncared(owners, registry))
        due = await self._due(uncared)
        await self._give_back(
            home
            for home, share in self._ours.items()
            if home not in in_hand and (share not in uncared or (uncared[share] is not None and share not in due))
        )
        self._homeless = {share for share in uncared if home_of(share) not in {*taken, *self._ours}}
        for share in sorted(due & self._homeless):
            await self._take(share, owners)

    async def give_all_back(self) -> None:
        """This process ends in good order."""
        await self._give_back(tuple(self._ours))

    async def _registry(self, owners: Mapping[TopicPartition, Owner]) -> Registry:
        """Who lives, as of after it was asked who owns what: an owner is registered before it owns anything."""
        runtime = self._runtime
        registry = runtime.registration.registry
        if {each.owner for each in owners.values()} <= {None, self._owner, *registry.processes}:
            return registry
        return await runtime.outages.insist(lambda: runtime.store.handlers.registry(now=runtime.clock.now()))

    def _find_uncared(
        self, owners: Mapping[TopicPartition, Owner], registry: Registry
    ) -> Iterable[tuple[Share, Types]]:
        """The shares, of handlers of this process, whose events the owner of the partition does not run."""
        alone_before, self._alone_since = self._alone_since, {}
        for partition, (epoch, owner) in owners.items():
            if _is_share(partition) or self._runtime.assignment.owns(partition):
                continue
            if owner is not None and owner in registry.processes and owner != self._owner:
                yield from self._missing(partition, registry.processes[owner])
                continue
            since = alone_before.get((partition, epoch), self._runtime.clock.monotonic())
            self._alone_since[partition, epoch] = since
            # In a rebalance nobody owns anything, and for one that has died the group finds another owner.
            if self._runtime.clock.monotonic() - since >= self._runtime.limits.heartbeat:
                yield from ((share, None) for share in self._shares_of([partition]))

    def _missing(
        self, partition: TopicPartition, owners_handlers: Mapping[str, Collection[Trigger]]
    ) -> Iterable[tuple[Share, Types]]:
        for handler, types in self._types.items():
            if handler != UNREADABLE and handler not in owners_handlers:
                yield (partition, handler), None
            elif missing := types - _types(owners_handlers.get(handler, ())):
                yield (partition, handler), missing

    async def _due(self, uncared: Mapping[Share, Types]) -> set[Share]:
        """Those of the shares that have something due which this process can run, and the owner cannot."""
        runtime = self._runtime
        found: set[Share] = set()
        for ground in _grounds(uncared):
            due = partial(runtime.store.parking.due, ground.partitions, handlers=ground.handlers, limit=AT_ONCE)
            for row in await runtime.outages.insist(partial(due, now=runtime.clock.now())):
                share = row.record.source, row.claim.handler
                types = uncared[share]
                if types is None or self._type_here(row) in types:
                    found.add(share)
        return found

    # ── taking and giving back ────────────────────────────────────────────────────────────────────────────────────

    async def _take(self, share: Share, owners: Mapping[TopicPartition, Owner]) -> None:
        partitions, insist, home = self._runtime.store.partitions, self._runtime.outages.insist, home_of(share)
        unchanged = {each: owners.get(each, NOBODY).epoch for each in (share[0], home)}
        taken = await insist(lambda: partitions.take([home], owner=self._owner, unchanged=unchanged))
        if home not in taken:
            return  # somebody else is the owner by now, of the partition or of the share
        crashes = await insist(lambda: self._runtime.store.suspects.known([home]))
        self._ours[home] = share
        self._homeless = {each for each in self._homeless if each != share}
        self._runtime.assignment.own_share(home, epoch=taken[home].epoch)
        if crashes or not taken[home].clean:
            self._caution.begin({home: 0}, crashes)

    async def _give_back(self, homes: Iterable[TopicPartition]) -> None:
        assignment = self._runtime.assignment
        epochs = {home: assignment.epoch(home) for home in homes}
        owned = {home: epoch for home, epoch in epochs.items() if epoch is not None}
        if not owned:
            return
        careful_until = {home: until for home, until in self._caution.remaining().items() if home in owned}
        assignment.disown(owned)
        self._caution.forget(owned)
        self._ours = {home: share for home, share in self._ours.items() if home not in owned}
        release = self._runtime.store.partitions.release
        await self._runtime.outages.insist(lambda: release(owned, careful_until=careful_until))


def _is_share(partition: TopicPartition) -> bool:
    return " " in partition.topic


def _types(triggers: Iterable[Trigger]) -> set[str]:
    return {trigger.event_type for trigger in triggers}


def _grounds(shares: Iterable[Share]) -> list[Ground]:
    """Shares as few questions: the partitions of each handler together, and handlers of the same partitions."""
    of_handler: dict[str, set[TopicPartition]] = {}
    for partition, handler in shares:
        of_handler.setdefault(handler, set()).add(partition)
    of_partitions: dict[frozenset[TopicPartition], list[str]] = {}
    for handler, partitions in of_handler.items():
        of_partitions.setdefault(frozenset(partitions), []).append(handler)
    return [Ground(sorted(partitions), sorted(handlers)) for partitions, handlers in of_partitions.items()]
