"""From what was written to client settings: every name that Kafka's clients use for it, each value with its place."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias

from microflow.errors import SettingsError
from microflow.transports.kafka.client_settings import ClientSettings
from microflow.transports.kafka.tls import tls_context
from microflow.transports.kafka.tokens import TokenCommand, TokenFile, TokenFunction

MECHANISMS = ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "OAUTHBEARER")
PROTOCOLS = ("PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL")
TOKENS = ("sasl_oauth_token_command", "sasl_oauth_token_file", "sasl_oauth_token_provider")
FILES = ("ssl_cafile", "ssl_certfile", "ssl_keyfile")


class Given(NamedTuple):
    """What somebody wrote, and where. It may be a secret."""

    value: str
    where: str

    def __repr__(self) -> str:
        return f"Given(…, {self.where})"


Read: TypeAlias = Callable[[Given], Any]


def _text(given: Given) -> str:
    return given.value


def _number(given: Given) -> int:
    if not given.value.strip().isdecimal():
        raise SettingsError(f"{given.where}: {given.value!r} is no whole number.")
    return int(given.value)


def _yes_or_no(given: Given) -> bool:
    said = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False, "none": False, "https": True}
    if given.value.strip().lower() not in said:
        raise SettingsError(f"{given.where}: {given.value!r} is neither true nor false.")
    return said[given.value.strip().lower()]


def _one_of(*words: str) -> Read:
    def read(given: Given) -> str:
        for word in words:
            if given.value.strip().upper() == word.upper():
                return word
        near = difflib.get_close_matches(given.value.upper(), [word.upper() for word in words], n=1)
        raise SettingsError(
            f"{given.where}: {given.value!r} is none of {', '.join(words)}.",
            fix=f"Did you mean {near[0]}?" if near else None,
        )

    return read


NAMES: Mapping[str, Read] = {
    "client_id": _text,
    "security_protocol": _one_of(*PROTOCOLS),
    "sasl_mechanism": _one_of(*MECHANISMS),
    "sasl_username": _text,
    "sasl_password": _text,
    **dict.fromkeys(TOKENS, _text),
    **dict.fromkeys(FILES, _text),
    "ssl_password": _text,
    "ssl_check_hostname": _yes_or_no,
    "group_instance_id": _text,
    "client_rack": _text,
    "compression_type": _one_of("gzip", "snappy", "lz4", "zstd"),
    **dict.fromkeys(
        (
            "session_timeout_ms",
            "heartbeat_interval_ms",
            "rebalance_timeout_ms",
            "request_timeout_ms",
            "delivery_timeout_ms",
            "metadata_max_age_ms",
            "retry_backoff_ms",
            "connections_max_idle_ms",
            "fetch_max_wait_ms",
            "fetch_min_bytes",
            "fetch_max_bytes",
            "max_partition_fetch_bytes",
            "max_batch_size",
        ),
        _number,
    ),
}
"""All that can be set, by aiokafka's names."""

ALSO_CALLED = {
    "sasl_plain_username": "sasl_username",
    "sasl_plain_password": "sasl_password",
    "sasl_mechanisms": "sasl_mechanism",
    "ssl_ca_location": "ssl_cafile",
    "ssl_certificate_location": "ssl_certfile",
    "ssl_key_location": "ssl_keyfile",
    "ssl_key_password": "ssl_password",
    "ssl_endpoint_identification_algorithm": "ssl_check_hostname",
    "compression_codec": "compression_type",
    "batch_size": "max_batch_size",
    "message_timeout_ms": "delivery_timeout_ms",
    "fetch_wait_max_ms": "fetch_max_wait_ms",
}
"""librdkafka's and Java's names for the same."""

_ORDER = "Without it events could be lost or change places."
OURS = {
    "acks": _ORDER,
    "enable_idempotence": _ORDER,
    "transactional_id": "What is published together is decided by the database's transaction.",
    "isolation_level": "Events of transactions that were aborted are never read.",
    "enable_auto_commit": "A service goes on where its database says; offsets in Kafka are for displays of lag.",
    "auto_offset_reset": 'A service says where it starts when it has never read: Service(…, start="latest").',
    "group_id": "The group is the service's name.",
    "max_poll_interval_ms": "A slow handler is no reason to lose a partition; handlers have a deadline of their own.",
    "partition_assignment_strategy": "All members of a group must have the same.",
}
"""What Kafka's clients can be told and is not anybody's to tell here, and why."""


def read_client_settings(servers: str, given: Mapping[str, Given]) -> ClientSettings:
    """The settings of clients. Raises SettingsError with the place of what makes no sense; a secret is never in it."""
    values: dict[str, Any] = {}
    places: dict[str, str] = {}
    for written, each in given.items():
        name = ALSO_CALLED.get(written, written)
        _check_name(name, written, each.where)
        values[name], places[name] = NAMES[name](each), each.where
    _check_login(values, places)
    tokens = {name: values.pop(name) for name in TOKENS if name in values}
    files = {name: values.pop(name) for name in (*FILES, "ssl_password", "ssl_check_hostname") if name in values}
    protocol = values.get("security_protocol", "PLAINTEXT")
    if protocol in ("SSL", "SASL_SSL"):
        values["ssl_context"] = tls_context(files, places)
    if tokens:
        (name, said), *_ = tokens.items()
        values["token_provider"] = _tokens(name, said, places[name])
    settings = ClientSettings(servers=servers, **values)
    if settings.heartbeat_interval_ms >= settings.session_timeout_ms:
        raise SettingsError(
            f"heartbeat_interval_ms ({settings.heartbeat_interval_ms}) is not shorter than session_timeout_ms "
            f"({settings.session_timeout_ms}).",
            why="A member that says nothing for the length of a session loses its partitions.",
        )
    return settings


def _check_name(name: str, written: str, where: str) -> None:
    if name in NAMES:
        return
    if name in OURS:
        raise SettingsError(f"{where}: {written} is not to be set.", why=OURS[name])
    near = difflib.get_close_matches(written, [*NAMES, *ALSO_CALLED], n=1)
    raise SettingsError(
        f"{where}: Kafka's clients have no setting {written}.",
        fix=f"Did you mean {near[0]}?" if near else f"There are {', '.join(NAMES)}.",
    )


def _check_login(values: Mapping[str, Any], places: Mapping[str, str]) -> None:
    """Refuse what would be ignored, or be asked for at the first connection."""
    protocol = values.get("security_protocol", "PLAINTEXT")
    mechanism = values.get("sasl_mechanism", "PLAIN")
    for name, where in places.items():
        for prefix, needed in (("ssl_", ("SSL", "SASL_SSL")), ("sasl_", ("SASL_PLAINTEXT", "SASL_SSL"))):
            if name.startswith(prefix) and protocol not in needed:
                raise SettingsError(
                    f"{where} is set, and security_protocol is {protocol}.",
                    why="It would be ignored.",
                    fix=f"MICROFLOW_KAFKA_SECURITY_PROTOCOL={needed[-1]}",
                )
    if protocol not in ("SASL_PLAINTEXT", "SASL_SSL"):
        return
    if mechanism == "OAUTHBEARER":
        if sum(name in values for name in TOKENS) != 1:
            raise SettingsError(
                "sasl_mechanism is OAUTHBEARER, and it is not clear where tokens come from.",
                fix=f"Set one of {', '.join(TOKENS)}.",
            )
    elif not {"sasl_username", "sasl_password"} <= values.keys():
        raise SettingsError(
            f"sasl_mechanism is {mechanism}, and sasl_username or sasl_password is missing.",
            fix="MICROFLOW_KAFKA_SASL_USERNAME=… MICROFLOW_KAFKA_SASL_PASSWORD=…",
        )


def _tokens(name: str, said: str, where: str) -> Any:
    if name == "sasl_oauth_token_command":
        return TokenCommand(said)
    if name == "sasl_oauth_token_file":
        return TokenFile(said)
    return TokenFunction.load(said, where=where)
