"""What aiokafka and the network say, as the error of a transport: what happened, why, and what helps."""

from __future__ import annotations

import re
import socket
import ssl
from collections.abc import Iterable

from aiokafka import errors as kafka

from microflow.errors import LogRefused, LogUnreachable, RecordTooLarge, TopicRefused, TransportError

_DENIED = (
    kafka.TopicAuthorizationFailedError,
    kafka.GroupAuthorizationFailedError,
    kafka.ClusterAuthorizationFailedError,
    kafka.TransactionalIdAuthorizationFailed,
)


def transport_error(cause: BaseException, *, doing: str, needs: str | None = None) -> TransportError:
    """The error for a request that a reachable broker refused, or that failed on its way. `doing` says which, and
    `needs` the permission that it takes, in the words of kafka-acls.sh."""
    if isinstance(cause, TransportError):
        return cause
    if isinstance(cause, kafka.MessageSizeTooLargeError | kafka.RecordTooLargeError | kafka.RecordListTooLargeError):
        return RecordTooLarge(f"Kafka refused {doing}: a record is larger than it allows.")
    if isinstance(cause, _DENIED):
        return _denied(cause, doing, needs)
    if isinstance(cause, kafka.InvalidTopicError):
        return TopicRefused(f"Kafka refused {doing}: no topic may have that name.", fix="Letters, digits, . _ and -")
    if isinstance(cause, kafka.UnknownTopicOrPartitionError):
        return TopicRefused(
            f"Kafka refused {doing}: the topic or partition does not exist.", fix="microflow topics apply"
        )
    if isinstance(cause, TimeoutError | kafka.RequestTimedOutError | kafka.KafkaTimeoutError):
        return TransportError(f"Kafka did not answer in time: {doing}.")
    return TransportError(f"Kafka: {doing}: {_said(cause)}")


def permission(operation: str, topics: Iterable[str] = (), *, group: str | None = None) -> str:
    """A permission on topics, or on a group, in the words of kafka-acls.sh."""
    resources = [*(f"--topic {topic}" for topic in topics), *([f"--group {group}"] if group is not None else [])]
    return " ".join([f"--operation {operation}", *resources])


def permitting(needs: str) -> str:
    """What whoever runs the cluster types to give a permission."""
    return f"kafka-acls.sh --add --allow-principal User:… {needs}"


def unreachable(
    servers: str, cause: BaseException | None, *, encrypted: bool, logs_in: bool, user: str | None
) -> TransportError:
    """The error for a cluster with which no conversation comes about; `cause` is what one attempt ended with."""
    at = f"at {_with_ports(servers)}"
    if isinstance(cause, kafka.SaslAuthenticationFailed | kafka.AuthenticationFailedError):
        return TransportError(
            f"Kafka {at} refuses the password of {user}." if user else f"Kafka {at} refuses who we say we are.",
            why=_said(cause),
            fix="Check sasl_mechanism, sasl_username and sasl_password (MICROFLOW_KAFKA_SASL_…).",
        )
    if isinstance(cause, kafka.UnsupportedSaslMechanismError):
        return TransportError(
            f"Kafka {at} does not take this sasl_mechanism.", fix="PLAIN, SCRAM-SHA-256, SCRAM-SHA-512 or OAUTHBEARER"
        )
    if isinstance(cause, kafka.IllegalSaslStateError):
        return _knows_no_login(at, encrypted) if logs_in else _expects_login(at)
    if isinstance(cause, ssl.SSLCertVerificationError):
        return TransportError(
            f"The certificate of Kafka {at} is not trusted.",
            why=cause.verify_message or _said(cause),
            fix="Name the authority's file in ssl_cafile (MICROFLOW_KAFKA_SSL_CAFILE), and the broker as its "
            "certificate does.",
        )
    if isinstance(cause, ssl.SSLError):
        return _tls_failed(at, cause)
    if isinstance(cause, ConnectionRefusedError):
        return LogUnreachable(
            f"Kafka is not reachable {at} (connection refused).",
            fix="Start it:  docker compose up -d kafka     or run without Kafka: leave MICROFLOW_KAFKA out",
        )
    if isinstance(cause, socket.gaierror):
        return LogUnreachable(f"Kafka is not reachable {at} (no such host).", fix="Check MICROFLOW_KAFKA (--log).")
    return _no_conversation(at, cause, encrypted)


def _with_ports(servers: str) -> str:
    """The addresses as they are tried: Kafka's clients know the port of one that names none."""
    return ",".join(each if _PORT.search(each) else f"{each}:9092" for each in servers.split(","))


_PORT = re.compile(r":\d+$")


def _tls_failed(at: str, cause: ssl.SSLError) -> TransportError:
    said = (cause.reason or "").replace("_", " ").lower()
    if "wrong version number" in said or "record layer failure" in said or "eof" in said:
        return TransportError(
            f"What answers {at} does not speak TLS.",
            why=said or _said(cause),
            fix="Name Kafka's TLS listener, or set security_protocol to PLAINTEXT or SASL_PLAINTEXT.",
        )
    if "certificate required" in said or "bad certificate" in said or "handshake failure" in said:
        return TransportError(
            f"Kafka {at} asks for a client certificate that it trusts.",
            why=said,
            fix="Name it in ssl_certfile and ssl_keyfile (MICROFLOW_KAFKA_SSL_CERTFILE, …_KEYFILE).",
        )
    return TransportError(f"No TLS connection to Kafka {at}.", why=said or _said(cause))


def _no_conversation(at: str, cause: BaseException | None, encrypted: bool) -> TransportError:
    if isinstance(cause, kafka.KafkaProtocolError):
        return TransportError(
            f"What listens {at} is not Kafka.", why="It answers in another protocol.", fix="Check host and port."
        )
    if isinstance(cause, kafka.KafkaConnectionError | EOFError | ConnectionResetError):
        return TransportError(
            f"What listens {at} does not speak Kafka's protocol as it was asked to.",
            why=f"It closed the connection, as a listener {'without' if encrypted else 'with'} TLS would.",
            fix="Check the port, and security_protocol (PLAINTEXT, SSL, SASL_PLAINTEXT or SASL_SSL).",
        )
    if cause is None or isinstance(cause, TimeoutError | kafka.RequestTimedOutError):
        return LogUnreachable(
            f"Kafka does not answer {at}.",
            why="The connection stands, or is being made, and nothing comes back.",
            fix="Check the address, firewalls, and security_protocol (a TLS listener may be silent to PLAINTEXT).",
        )
    return LogUnreachable(f"Kafka is not reachable {at} ({_said(cause)}).", fix="Check MICROFLOW_KAFKA (--log).")


def _expects_login(at: str) -> TransportError:
    return TransportError(
        f"Kafka {at} expects a login.",
        fix="Set security_protocol to SASL_PLAINTEXT or SASL_SSL, sasl_mechanism, sasl_username and sasl_password.",
    )


def _knows_no_login(at: str, encrypted: bool) -> TransportError:
    return TransportError(
        f"What listens {at} takes no login.",
        why="It is Kafka, and a listener without SASL: it refuses the handshake of one.",
        fix="Name the port of Kafka's SASL listener, or set security_protocol (MICROFLOW_KAFKA_SECURITY_PROTOCOL) to "
        f"{'SSL' if encrypted else 'PLAINTEXT'}.",
    )


def _denied(cause: BaseException, doing: str, needs: str | None) -> TransportError:
    resource = "topic"
    if isinstance(cause, kafka.GroupAuthorizationFailedError):
        resource = "group"
    elif isinstance(cause, kafka.ClusterAuthorizationFailedError):
        resource = "cluster"
    kind = TopicRefused if resource == "topic" else LogRefused
    return kind(
        f"Kafka does not permit {doing}.",
        why=f"The user we are connected as lacks a permission on the {resource}.",
        fix=f"{permitting(needs or '…')}   (docs/operations.md lists what a service needs)",
    )


def _said(cause: BaseException) -> str:
    """What an error says of itself, without aiokafka's numbers."""
    text = str(cause).strip()
    if isinstance(cause, kafka.BrokerResponseError):
        text = text.removeprefix(f"[Error {cause.errno}]").strip()
    return text.removeprefix(f"{type(cause).__name__}:").strip() or type(cause).__name__
