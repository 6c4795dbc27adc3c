"""The client for questions: metadata, offsets, groups and settings of a cluster, each answered within a deadline.

Publishing and reading have connections of their own, so that no question waits behind a record or a parked fetch.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Awaitable, Callable, Collection, Mapping
from datetime import timedelta
from typing import Any, TypeVar

from aiokafka import errors as kafka
from aiokafka.client import AIOKafkaClient, CoordinationType
from aiokafka.conn import AIOKafkaConnection, collect_hosts, create_conn
from aiokafka.protocol.coordination import FindCoordinatorRequest
from aiokafka.protocol.metadata import MetadataRequest

from microflow.errors import TransportError
from microflow.ports import TopicPartition
from microflow.transports.kafka.client_settings import ClientSettings
from microflow.transports.kafka.errors import transport_error, unreachable
from microflow.transports.kafka.protocol import DescribeTopics

T = TypeVar("T")

PATIENCE = timedelta(seconds=5)
"""How long a question is asked again while nobody answers it."""

ONE_ANSWER = 1.5
"""Seconds that the first broker asked has for its answer, and each further one that much more: one that is frozen or
cut off takes questions and says nothing, and one that is only slow must be waited for some time."""
SILENT_FOR = 10.0
"""Seconds for which a broker that gave none is asked only what no other knows."""

BACKOFF = 0.1
FIRST_ATTEMPT = 5.0
FIRST_WORD = 2.0
LARGEST_ANSWER = 1 << 24
ASK_FOR_VERSIONS = bytes.fromhex("0000000a 0012 0000 00000001 0000".replace(" ", ""))
"""ApiVersions, version 0, from a client without a name: the first request of every conversation."""


class Client:
    """A connection to a cluster that answers questions. Every error is a TransportError."""

    def __init__(self, settings: ClientSettings) -> None:
        self.settings = settings
        self._client = AIOKafkaClient(**settings.connection())
        self._coordinators: dict[str, int] = {}
        self._silent: dict[int, float] = {}

    async def start(self) -> None:
        """Reach the cluster once. Raises TransportError with the reason in plain words."""
        # First by ourselves: aiokafka only logs why it cannot, and when it is cut short it leaves a connection open.
        if (cause := await self._why_unreachable()) is not None:
            raise self._unreachable(cause) from cause
        try:
            await self._client.bootstrap()
        except (kafka.KafkaError, TimeoutError, OSError) as error:
            await self._client.close()
            raise self._unreachable(error) from error

    async def close(self) -> None:
        await self._client.close()

    async def ask(
        self,
        request: Any,
        read: Callable[[Any], T],
        *,
        doing: str,
        of: Callable[[], Awaitable[int]] | None = None,
        within: timedelta = PATIENCE,
        once: bool = False,
    ) -> T:
        """Send a request and return what `read` makes of the response; any broker is asked unless `of` says which.

        `read` raises what the response holds of errors: those that pass are waited out, until `within` is over. One
        that is to be said `once` is not said to another broker while the answer of the first may still come.
        """
        last: BaseException | None = None
        asked = 0
        try:
            async with asyncio.timeout(within.total_seconds()):
                while True:
                    try:
                        asked += 1
                        return read(await self._sent(request, of, within=None if once else ONE_ANSWER * asked))
                    except kafka.KafkaError as error:
                        last = error
                        if not error.retriable:
                            raise transport_error(error, doing=doing) from error
                    # A broker that cannot be reached says so in the metadata, which this renews.
                    await asyncio.wait([self._client.force_metadata_update()], timeout=BACKOFF)
                    await asyncio.sleep(BACKOFF)
        except TimeoutError:
            if last is None or isinstance(last, kafka.NodeNotReadyError | kafka.KafkaConnectionError):
                raise self._unreachable(await self._why_unreachable()) from last
            raise transport_error(last, doing=doing) from last

    async def why(self, error: BaseException) -> TransportError:
        """Why another client could not start, in plain words."""
        cause = await self._why_unreachable()
        return transport_error(error, doing="to connect") if cause is None else self._unreachable(cause)

    async def topics(
        self,
        names: Collection[str] | None,
        read: Callable[[Any], T],
        *,
        create: bool = False,
        permissions: bool = False,
    ) -> T:
        """What `read` makes of the brokers' metadata of the topics named, or of all."""
        doing = f"to look at {', '.join(sorted(names))}" if names else "to look at topics"
        return await self.ask(DescribeTopics(names, create=create, permissions=permissions), read, doing=doing)

    async def leaders(self, partitions: Collection[TopicPartition]) -> Mapping[TopicPartition, int]:
        """Who leads each partition; those that do not exist are left out."""
        found = await self.topics({partition.topic for partition in partitions}, _leaders)
        return {partition: found[partition] for partition in partitions if partition in found}

    def coordinator_of(self, group: str) -> Callable[[], Awaitable[int]]:
        """Who coordinates a group, for `ask`. `forget_coordinator` makes it ask anew."""

        async def find() -> int:
            if group not in self._coordinators:
                response = await self._sent(FindCoordinatorRequest(group, CoordinationType.GROUP))
                check(response.error_code)
                self._coordinators[group] = response.coordinator_id
            return self._coordinators[group]

        return find

    def forget_coordinator(self, group: str) -> None:
        self._coordinators.pop(group, None)

    async def _sent(
        self, request: Any, of: Callable[[], Awaitable[int]] | None = None, *, within: float | None = ONE_ANSWER
    ) -> Any:
        """The answer of one broker, if it comes soon. Raises NodeNotReadyError if not."""
        node = self._any_node() if of is None else await of()
        try:
            async with asyncio.timeout(within):
                return await self._client.send(node, request)
        except TimeoutError as error:
            self._silent[node] = time.monotonic() + SILENT_FOR
            self._coordinators = {group: each for group, each in self._coordinators.items() if each != node}
            raise kafka.NodeNotReadyError(f"broker {node} does not answer") from error

    def _any_node(self) -> int:
        now = time.monotonic()
        nodes: list[int] = [broker.nodeId for broker in self._client.cluster.brokers()]
        if not nodes:
            raise kafka.NodeNotReadyError("no broker is known")
        # Spread by chance: nobody relies on which of them it is.
        return random.choice([node for node in nodes if self._silent.get(node, now) <= now] or nodes)

    def _unreachable(self, cause: BaseException | None) -> TransportError:
        settings = self.settings
        return unreachable(
            settings.servers,
            cause,
            encrypted=settings.encrypted,
            logs_in=settings.logs_in,
            user=settings.sasl_username,
        )

    async def _why_unreachable(self) -> BaseException | None:
        """Why no server can be talked to: what it is with the first one. None if one can."""
        reason: BaseException | None = None
        for host, port, _ in collect_hosts(self.settings.servers, randomize=False):
            try:
                async with asyncio.timeout(FIRST_ATTEMPT):
                    await self._talk_to(host, port)
                return None
            except TimeoutError as error:
                reason = reason or await self._first_word(host, port) or error
            except (kafka.KafkaError, OSError, ValueError) as error:
                reason = reason or _root(error)
        return reason

    async def _talk_to(self, host: str, port: int) -> None:
        closing: list[AIOKafkaConnection] = []
        try:
            connection = await create_conn(
                host, port, on_close=lambda it, _: closing.append(it), **self.settings.one_connection()
            )
            try:
                await self._question(connection)
            finally:
                connection.close()
        finally:
            # aiokafka does not wait when a login fails: TLS says goodbye, and what runs us may end before it is said.
            if closing:
                await asyncio.wait([connection.close() for connection in closing], timeout=FIRST_WORD)

    async def _question(self, connection: AIOKafkaConnection) -> None:
        try:
            async with asyncio.timeout(FIRST_WORD):
                if not (await connection.send(MetadataRequest([]))).brokers:
                    raise kafka.KafkaConnectionError("an answer to another question")
        except (kafka.KafkaConnectionError, TimeoutError) as error:
            # Versions are told to everybody, and then only those who have logged in are listened to.
            if not self.settings.logs_in:
                raise kafka.IllegalSaslStateError from error
            # To a token that it does not take a broker answers by asking for more, and aiokafka does not look.
            raise kafka.AuthenticationFailedError("the broker does not go on after the login") from error

    async def _first_word(self, host: str, port: int) -> BaseException | None:
        """What somebody is who did not answer as a broker: None if nothing at all is said."""
        with contextlib.suppress(OSError, TimeoutError, asyncio.IncompleteReadError):
            async with asyncio.timeout(FIRST_WORD):
                reader, writer = await asyncio.open_connection(host, port, ssl=self.settings.ssl_context)
                try:
                    writer.write(ASK_FOR_VERSIONS)
                    length = int.from_bytes(await reader.readexactly(4), "big")
                    return kafka.KafkaProtocolError() if length > LARGEST_ANSWER else None
                finally:
                    writer.transport.abort()
        return None


def as_it_is(response: Any) -> Any:
    """A response that holds no errors."""
    return response


def _leaders(metadata: Any) -> dict[TopicPartition, int]:
    return {TopicPartition(topic[1], each[1]): each[2] for topic in metadata.topics for each in topic[4]}


def check(code: int, about: Any = None) -> None:
    """Raise the error that a response's code stands for."""
    if code:
        error = kafka.for_code(code)
        raise error() if about is None else error(about)


def _root(error: BaseException) -> BaseException:
    """The socket's or TLS's own error where aiokafka wrapped it, since it knows more."""
    if isinstance(error, kafka.KafkaConnectionError) and isinstance(error.__cause__, OSError):
        return error.__cause__
    return error
