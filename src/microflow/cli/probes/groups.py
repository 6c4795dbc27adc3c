"""Consumer groups: who is in one, how much it has still to handle, and what is gone before it was read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from microflow.cli.probes.findings import Finding, ok, problem
from microflow.cli.probes.log import SharedLog, is_there
from microflow.connect import look_at_database
from microflow.errors import SettingsError, StoreError, TopicRefused
from microflow.permissions import permitting
from microflow.ports import Bounds, GroupState, TopicPartition, Transport
from microflow.service import Definition
from microflow.settings import MEMORY, Settings


async def look_at_group(
    log: SharedLog, definition: Definition, settings: Settings, *, target: str
) -> Sequence[Finding]:
    """The group of a service, and how far the service is, by its own database."""
    if settings.database_of(definition.name) == MEMORY or not is_there(settings):
        return []
    if (transport := await log.get_or_none()) is None:
        return []
    group = await transport.inspection.group(definition.name)
    members = f"{len(group.members)} member{'s' if len(group.members) != 1 else ''}"
    strange = list(_of_members(definition.name, group, settings, ours=transport.inspection.client_id))
    watermarks = await _watermarks(settings, definition.name)
    if watermarks is None:
        return [ok(f"group {definition.name}", members), *strange]
    bounds = await _bounds(transport, definition)
    lag = sum(max(bound.end - watermarks.get(each, bound.beginning), 0) for each, bound in bounds.items())
    return [
        ok(f"group {definition.name}", members, f"{_to_handle(lag)} in {len(bounds)} partitions"),
        *strange,
        *_lost(definition.name, bounds, watermarks, target=target),
    ]


async def _watermarks(settings: Settings, service: str) -> Mapping[TopicPartition, int] | None:
    """How far a service is, or None where the probe that looks at its database tells why nobody knows."""
    try:
        state = await look_at_database(settings, service=service)
    except (StoreError, SettingsError):
        return None
    return None if state.is_newer else state.watermarks


def _to_handle(lag: int) -> str:
    # From the watermark on: some of it may be handled, or of a type that nothing here is triggered by.
    return f"up to {lag:,} record{'s' if lag != 1 else ''} to handle" if lag else "nothing to handle"


async def _bounds(transport: Transport, definition: Definition) -> Mapping[TopicPartition, Bounds]:
    try:
        described = await transport.topics.describe(definition.topics.keys())
    except TopicRefused:  # told by whoever looks at topics
        return {}
    partitions = [TopicPartition(each.name, number) for each in described.values() for number in range(each.partitions)]
    return await transport.topics.bounds(partitions)


def _of_members(name: str, group: GroupState, settings: Settings, *, ours: str) -> Iterator[Finding]:
    for client_id, host in group.members:
        if client_id != ours:
            yield problem(
                f"group {name} has a member that is no process of {name}: {client_id} at {host}. The events of its "
                f"partitions are not handled",
                "stop it, or give it another group; if it is ours, both need the same MICROFLOW_KAFKA_CLIENT_ID",
            )
    if group.may_join is False:
        yield problem(
            f"group {name}: this user may not join it",
            permitting(settings, "Read", group=name),
        )


def _lost(
    name: str, bounds: Mapping[TopicPartition, Bounds], watermarks: Mapping[TopicPartition, int], *, target: str
) -> Iterator[Finding]:
    for each, bound in bounds.items():
        count = bound.beginning - watermarks.get(each, bound.beginning)
        if count > 0:
            yield problem(
                f"{count:,} records of {each.topic}[{each.partition}] are gone from the log, and {name} has not read "
                f"them",
                f"microflow topics apply {target} --retention 30d     (for those that are still there)",
            )
