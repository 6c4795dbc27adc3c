"""Copies of dead letters: what a service has given up can be read by others, from the topic `dlq-<service>`.

Key, value and headers are those of the record, byte for byte; what is known of its end stands in headers of its own,
named as Kafka's brokers name them (KIP-1191, with a few more). The dead letter itself is in the service's database, and
only that one is redriven. A copy that cannot be made or published takes nothing away from it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from microflow.errors import LogGone, TransportError
from microflow.ports import Clock, DeadLetter, Headers, OutboxRow, Record, Transport

logger = logging.getLogger("microflow.dead_letters")

PREFIX = "__dlq.errors."
CUT = "microflow-cut"
"""On a copy whose value had to be cut: how many bytes the whole value has. It is in the service's database."""
REDRIVE_FOR = "microflow-redrive-for"
"""On a record that somebody sends again for one handler that gave it up: `<service>/<handler>`."""
LOOK_EVERY = timedelta(minutes=1)


def topic_of_copies(service: str) -> str:
    """Where the dead letters of a service are copied to."""
    return f"dlq-{service}"


def is_copy(record: Record) -> bool:
    """Whether a record is the copy of a dead letter, of whichever consumer that names them so."""
    return any(name.startswith(PREFIX) for name, _ in record.headers)


def redriven_for(record: Record) -> tuple[str, str] | None:
    """The service and the handler for which a record was sent again; None: it is for everybody."""
    for name, value in record.headers:
        if name == REDRIVE_FOR:
            service, _, handler = value.decode(errors="replace").partition("/")
            return service, handler
    return None


class Copies:
    """Makes the copies of one service's dead letters, as long as the log has a topic for them.

    `refused` says whether the relay knows that a topic takes nothing.
    """

    def __init__(self, service: str, transport: Transport, *, clock: Clock, refused: Callable[[str], bool]) -> None:
        self.topic = topic_of_copies(service)
        self._service = service
        self._transport = transport
        self._clock = clock
        self._refused = refused
        self._exists = False

    @property
    def can_be_made(self) -> bool:
        """Whether the log has a topic for them, as far as was seen."""
        return self._exists

    async def look(self) -> None:
        """See whether the topic is there, and make it where the log does that by itself. Raises TransportError."""
        self._exists = not await self._transport.topics.ensure([self.topic])

    async def follow(self) -> None:
        """If the topic is missing, say so and look for it now and then, until it is there."""
        if not self._exists:
            logger.info(
                "dead letters of %s are kept in its database only: the log has no topic %s "
                "(microflow topics apply TARGET)",
                self._service,
                self.topic,
            )
        while not self._exists:
            await self._clock.sleep(LOOK_EVERY)
            try:
                await self.look()
            except LogGone:
                raise
            except TransportError as error:
                logger.debug("cannot look for %s: %s", self.topic, error)

    def copy_of(self, letter: DeadLetter) -> OutboxRow | None:
        """The row that publishes a copy; None if there is no topic for it, or if it would be the copy of a copy.

        A service that gives up what it has read from such a topic, its own perhaps, must not write it there again.
        """
        record = letter.record
        if not self._exists or self._refused(self.topic) or is_copy(record):
            return None
        limit = self._transport.max_record_bytes(self.topic)
        about = _about(letter, self._service)
        for headers in ((*record.headers, *about), about):
            if (fitting := _fitting(record, headers, limit)) is not None:
                value, headers = fitting
                return OutboxRow(self.topic, record.key, value, headers, letter.failed_at, partition=record.partition)
        return None  # its key alone is too large


def _about(letter: DeadLetter, service: str) -> Headers:
    record = letter.record
    error, _, _ = letter.error.partition(":")
    said = {
        "topic": record.topic,
        "partition": str(record.partition),
        "offset": str(record.offset),
        "group": service,
        "delivery.count": str(letter.attempts),
        "message": letter.error,
        "exception.class.name": error.partition(" ")[0],
        "exception.stacktrace": letter.trace,
        "handler": letter.claim.handler,
        "first.time": _instant(letter.first_failed_at),
        "last.time": _instant(letter.failed_at),
    }
    return tuple((PREFIX + name, text.encode(errors="backslashreplace")) for name, text in said.items())


def _fitting(record: Record, headers: Headers, limit: int) -> tuple[bytes | None, Headers] | None:
    """As much of a record's value as fits with its headers, and headers that say so if it was cut; None if nothing."""
    room = limit - _size(record.key, headers)
    if len(record.value or b"") <= room:
        return record.value, headers
    headers = (*headers, (CUT, str(len(record.value or b"")).encode()))
    room = limit - _size(record.key, headers)
    return (record.value[:room], headers) if record.value and room > 0 else None


def _size(key: bytes | None, headers: Headers) -> int:
    return len(key or b"") + sum(len(name.encode("utf-8", "surrogatepass")) + len(value) for name, value in headers)


def _instant(instant: datetime) -> str:
    return instant.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
