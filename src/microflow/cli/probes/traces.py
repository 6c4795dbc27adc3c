"""Traces: whether anybody takes them, and whether somebody else adds to them."""

from __future__ import annotations

import asyncio
import importlib.util
import sys
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

from microflow.cli.probes.findings import Finding, ok, warning
from microflow.cli.probes.machine import installed
from microflow.telemetry import endpoint_of, is_disabled, is_wanted

INSTRUMENTATION = "opentelemetry-instrumentation-aiokafka"
MODULE = "opentelemetry.instrumentation.aiokafka"


async def look_at_traces(environment: Mapping[str, str]) -> Sequence[Finding]:
    """Whether somebody listens where the environment sends traces."""
    if is_disabled(environment):
        return [ok("traces are switched off")]
    if not is_wanted(environment):
        return [
            ok("traces: none are made; OTEL_EXPORTER_OTLP_ENDPOINT=http://localhost:4318 sends them to a Jaeger here")
        ]
    endpoint = endpoint_of(environment)
    try:
        parts = urlsplit(endpoint)
        host, port = parts.hostname, parts.port or (443 if parts.scheme == "https" else 80)
        _, writer = await asyncio.open_connection(host, port)
        writer.close()
    except (OSError, ValueError) as error:
        return [
            warning(
                f"traces: nothing listens on {endpoint} ({_said(error)})",
                "docker compose up -d jaeger     or switch them off:  OTEL_TRACES_EXPORTER=none",
            )
        ]
    return [ok(f"traces are sent to {endpoint}, and somebody listens there")]


async def look_at_instrumentation(environment: Mapping[str, str]) -> Sequence[Finding]:
    """Whether aiokafka is instrumented: its spans would come beside ours, under a second traceparent."""
    if not _is_active(environment):
        return []
    return [
        warning(
            f"{INSTRUMENTATION} {installed(INSTRUMENTATION)} is active: it would add a second traceparent",
            "OTEL_PYTHON_DISABLED_INSTRUMENTATIONS=aiokafka",
        )
    ]


def _is_active(environment: Mapping[str, str]) -> bool:
    if importlib.util.find_spec("opentelemetry") is None or installed(INSTRUMENTATION) is None:
        return False
    disabled = environment.get("OTEL_PYTHON_DISABLED_INSTRUMENTATIONS", "").split(",")
    if any(each.strip() in ("*", "aiokafka") for each in disabled):
        return False
    # `opentelemetry-instrument` starts every program with its own sitecustomize.
    if "opentelemetry.instrumentation.auto_instrumentation" in sys.modules:
        return True
    module: Any = sys.modules.get(MODULE)  # loaded by the application, if at all
    return module is not None and module.AIOKafkaInstrumentor().is_instrumented_by_opentelemetry


def _said(error: Exception) -> str:
    if isinstance(error, ConnectionRefusedError) or "Connect call failed" in str(error):
        return "connection refused"
    return getattr(error, "strerror", None) or str(error)
