"""Permissions: what a service must be allowed to do with its log. A start says what of it is missing, all at once."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator, Mapping

from microflow.dead_letter_copies import topic_of_copies
from microflow.errors import LogRefused, TransportError
from microflow.ports import TopicState, Transport
from microflow.service import Definition
from microflow.settings import Settings

logger = logging.getLogger("microflow.permissions")


async def check_permissions(definition: Definition, transport: Transport, settings: Settings) -> None:
    """Raise LogRefused for what the log is known not to permit; what it does not say is found out by trying."""
    written = {*definition.emitted.values(), topic_of_copies(definition.name)}
    try:
        log, group = await asyncio.gather(
            transport.inspection.log({*definition.topics, *written}), transport.inspection.group(definition.name)
        )
    except TransportError as error:  # whatever it is, it is told by whoever needs more than an answer
        logger.debug("permissions cannot be looked at: %s", error)
        return
    missing = dict(_missing(log.topics, reads=definition.topics, writes=written, settings=settings))
    if group.may_join is False:
        missing[f"join the group {definition.name}"] = permitting(settings, "Read", group=definition.name)
    if missing:
        raise LogRefused(
            f"Kafka at {settings.kafka} does not permit {definition.name} to {', nor to '.join(missing)}.",
            why=f"{_user(settings) or 'The user that we are connected as'} lacks the permission.",
            fix="\n".join(missing.values()),
        )


def permitting(settings: Settings, operation: str, *, topic: str | None = None, group: str | None = None) -> str:
    """The line that whoever runs the cluster types to give a permission to the user that settings name."""
    resource = f"--topic {topic}" if topic is not None else f"--group {group}"
    where = f"kafka-acls.sh --bootstrap-server {settings.kafka}"
    return f"{where} --add --allow-principal User:{_user(settings) or '…'} --operation {operation} {resource}"


def _missing(
    topics: Mapping[str, TopicState], *, reads: Mapping[str, object], writes: set[str], settings: Settings
) -> Iterator[tuple[str, str]]:
    """What is not permitted, each with the line that permits it."""
    for name, state in sorted(topics.items()):
        if name in reads and state.may_read is False:
            yield f"read {name}", permitting(settings, "Read", topic=name)
        if name in writes and state.may_write is False:
            yield f"write to {name}", permitting(settings, "Write", topic=name)


def _user(settings: Settings) -> str | None:
    name, _ = settings.kafka_client.get("sasl_username", (None, ""))
    return name
