"""How to reach a cluster and log in, and how its clients behave: what `MICROFLOW_KAFKA_…` and files set, as values."""

from __future__ import annotations

import ssl
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientSettings:
    """`servers` is `host[:port],…`. Names and units of all others are those of Kafka's own clients."""

    servers: str
    client_id: str = "microflow"
    security_protocol: str = "PLAINTEXT"
    sasl_mechanism: str = "PLAIN"
    sasl_username: str | None = None
    sasl_password: str | None = field(default=None, repr=False)
    ssl_context: ssl.SSLContext | None = field(default=None, repr=False)
    token_provider: Any = field(default=None, repr=False)
    group_instance_id: str | None = None
    session_timeout_ms: int = 10_000
    heartbeat_interval_ms: int = 500
    rebalance_timeout_ms: int = 60_000
    request_timeout_ms: int = 40_000
    delivery_timeout_ms: int = 10_000
    metadata_max_age_ms: int = 5_000
    retry_backoff_ms: int = 100
    connections_max_idle_ms: int = 540_000
    fetch_max_wait_ms: int = 500
    fetch_min_bytes: int = 1
    fetch_max_bytes: int = 52_428_800
    max_partition_fetch_bytes: int = 1_048_576
    client_rack: str | None = None
    compression_type: str | None = None
    max_batch_size: int = 524_288

    @property
    def encrypted(self) -> bool:
        return self.security_protocol in ("SSL", "SASL_SSL")

    @property
    def logs_in(self) -> bool:
        return self.security_protocol in ("SASL_PLAINTEXT", "SASL_SSL")

    def connection(self) -> dict[str, Any]:
        """What every client of aiokafka takes."""
        return {
            "bootstrap_servers": self.servers,
            "retry_backoff_ms": self.retry_backoff_ms,
            "connections_max_idle_ms": self.connections_max_idle_ms,
            **self._login(),
        }

    def one_connection(self) -> dict[str, Any]:
        """What a single connection to a broker takes."""
        return {"max_idle_ms": self.connections_max_idle_ms, **self._login()}

    def consumer(self) -> dict[str, Any]:
        """What a consumer takes beyond that, whether or not it is in a group."""
        return {
            **self.connection(),
            "metadata_max_age_ms": self.metadata_max_age_ms,
            "fetch_max_wait_ms": self.fetch_max_wait_ms,
            "fetch_min_bytes": self.fetch_min_bytes,
            "fetch_max_bytes": self.fetch_max_bytes,
            "max_partition_fetch_bytes": self.max_partition_fetch_bytes,
            "client_rack": self.client_rack,
        }

    def member(self) -> dict[str, Any]:
        """What a member of a group takes beyond that."""
        return {
            "group_instance_id": self.group_instance_id,
            "session_timeout_ms": self.session_timeout_ms,
            "heartbeat_interval_ms": self.heartbeat_interval_ms,
            "rebalance_timeout_ms": self.rebalance_timeout_ms,
        }

    def producer(self) -> dict[str, Any]:
        """What a producer takes."""
        return {
            **self.connection(),
            "metadata_max_age_ms": self.metadata_max_age_ms,
            "compression_type": self.compression_type,
            "max_batch_size": self.max_batch_size,
            # A broker holds up everything else that it is sent for as long as one batch may wait for its replicas.
            "request_timeout_ms": min(self.request_timeout_ms, self.delivery_timeout_ms),
        }

    def _login(self) -> dict[str, Any]:
        return {
            "client_id": self.client_id,
            "request_timeout_ms": self.request_timeout_ms,
            "security_protocol": self.security_protocol,
            "ssl_context": self.ssl_context,
            "sasl_mechanism": self.sasl_mechanism,
            "sasl_plain_username": self.sasl_username,
            "sasl_plain_password": self.sasl_password,
            "sasl_oauth_token_provider": self.token_provider,
        }
