"""Telemetry: OpenTelemetry as its own environment variables want it, for one service of this process.

A provider that the program has set up is used as it is. Where there is none, and a variable says where spans go
(`OTEL_EXPORTER_OTLP_ENDPOINT`, `OTEL_EXPORTER_OTLP_TRACES_ENDPOINT`, `OTEL_TRACES_EXPORTER`), one is set up here and
ended with the service. Otherwise, and with `OTEL_SDK_DISABLED=true`, contexts are passed on and no spans are made.

Source: OpenTelemetry's specification of its environment variables. Nobody waits for a collector: what it does not take
in time is dropped, with one line a minute that says so.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import threading
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from datetime import timedelta
from importlib.metadata import entry_points
from typing import Any

from opentelemetry import propagate, trace

from microflow import semantic_conventions as names
from microflow.envelopes import EPOCH
from microflow.errors import SettingsError
from microflow.ports import Clock
from microflow.tracing import UNTRACED, Place, Tracing
from microflow.version import __version__

logger = logging.getLogger("microflow.telemetry")

LEAVING = 2.0
"""Seconds that the end of a service gives the exporter for its last spans."""
KAFKAS_PORT = 9092
SELDOM = timedelta(minutes=1)
HTTP, GRPC = "http/protobuf", "grpc"
DEFAULT_ENDPOINTS = {GRPC: "http://localhost:4317", HTTP: "http://localhost:4318"}
_TICK = timedelta(microseconds=1)

_OF_EXPORTERS = (
    "opentelemetry.exporter.otlp.proto.http.trace_exporter",
    "opentelemetry.exporter.otlp.proto.grpc.exporter",
    "opentelemetry.sdk._shared_internal",
    "opentelemetry.sdk.trace.export",
)
_REASON = re.compile(r"\[Errno \d+\] ([\w ]+)|(timed? ?out)|[Rr]eason: ([\w ]+)|StatusCode\.(\w+)")


def is_wanted(environment: Mapping[str, str]) -> bool:
    """Whether OpenTelemetry's variables say that spans are to be made, and where they go."""
    if is_disabled(environment):
        return False
    return bool(
        environment.get("OTEL_TRACES_EXPORTER")
        or environment.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
        or environment.get("OTEL_EXPORTER_OTLP_ENDPOINT")
    )


def is_disabled(environment: Mapping[str, str]) -> bool:
    """Whether OpenTelemetry's variables say that no spans are to be made."""
    disabled = environment.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"
    return disabled or environment.get("OTEL_TRACES_EXPORTER", "").strip().lower() == "none"


def endpoint_of(environment: Mapping[str, str]) -> str:
    """Where OpenTelemetry's variables say that spans go."""
    for name in ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"):
        if environment.get(name):
            return environment[name]
    return DEFAULT_ENDPOINTS.get(_protocol(environment), DEFAULT_ENDPOINTS[HTTP])


@asynccontextmanager
async def tracing_of(
    service: str, *, place: Place, clock: Clock, environment: Mapping[str, str], is_alone: bool = False
) -> AsyncIterator[Tracing]:
    """The spans of a service while the block runs; leaving it hands over the last ones, for two seconds at most.

    `clock` is the machine's, as that of whatever else makes spans here; `environment` has OpenTelemetry's variables. A
    service that `is_alone` in its process shares its provider with all code there. Raises SettingsError for variables
    that name what is not there.
    """
    theirs = trace.get_tracer_provider()
    if not isinstance(theirs, trace.ProxyTracerProvider) and not hasattr(theirs, _OURS):
        yield tracing_by(theirs, service, place, clock)
        return
    if not is_wanted(environment):
        yield UNTRACED
        return
    ours = _provider(service, place, environment)
    if is_alone and isinstance(theirs, trace.ProxyTracerProvider):
        trace.set_tracer_provider(ours)
    _keep_exporters_quiet(clock, endpoint_of(environment))
    try:
        yield tracing_by(ours, service, place, clock)
    finally:
        await _ended(ours.shutdown)


def place_of(log: str, *, client_id: str) -> Place:
    """What spans say of where a service stands, from the address of its log."""
    if log.startswith(("local:", "memory:")):
        return Place("microflow", client_id=client_id)
    host, _, port = log.split(",")[0].strip().rpartition(":")
    if not host:
        host, port = port, ""
    return Place("kafka", host.strip("[]"), int(port) if port.isdigit() else KAFKAS_PORT, client_id)


def tracing_from_outside(service: str, clock: Clock) -> Tracing:
    """The spans of who is no service: those of a provider that the program sets up, before or after, if it does."""
    # Not the provider as it is now: a tracer of this one becomes that of another which is set up later.
    return tracing_by(trace.get_tracer_provider(), service, Place("kafka"), clock)


def tracing_by(provider: Any, service: str, place: Place, clock: Clock) -> Tracing:
    """The spans of a service by a provider of OpenTelemetry's SDK, or of another make."""
    sampler = getattr(provider, "sampler", None)
    described = sampler.get_description() if sampler is not None else ""
    return Tracing(
        provider.get_tracer("microflow", __version__, schema_url=names.SCHEMA_URL),
        propagate.get_global_textmap(),
        service=service,
        place=place,
        now=_nanoseconds(clock),
        heeds_parents="remoteParentNotSampled:AlwaysOffSampler" in described,
    )


def _nanoseconds(clock: Clock) -> Callable[[], int]:
    return lambda: (clock.now() - EPOCH) // _TICK * 1000


# ── a provider of our own ─────────────────────────────────────────────────────────────────────────────────────────

_OURS = "_made_by_microflow"


def _provider(service: str, place: Place, environment: Mapping[str, str]) -> Any:
    # The SDK and an exporter take a tenth of a second to import, which nobody waits for who has no use for them.
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    attributes = {"service.instance.id": place.client_id} if place.client_id else {}
    if "OTEL_SERVICE_NAME" not in environment and "service.name" not in environment.get("OTEL_RESOURCE_ATTRIBUTES", ""):
        attributes["service.name"] = service
    provider = TracerProvider(resource=Resource.create(attributes), shutdown_on_exit=False)
    for name in environment.get("OTEL_TRACES_EXPORTER", "otlp").split(","):
        provider.add_span_processor(BatchSpanProcessor(_exporter(name.strip(), environment)))
    setattr(provider, _OURS, True)
    return provider


def _exporter(name: str, environment: Mapping[str, str]) -> Any:
    if name == "otlp":
        return _otlp_exporter(environment)
    found = {each.name: each for each in entry_points(group="opentelemetry_traces_exporter")}
    if name not in found:
        raise SettingsError(
            f"OTEL_TRACES_EXPORTER names {name!r}, and no exporter of that name is installed.",
            why=f"There are {', '.join(sorted({'otlp', *found}))}.",
            fix="OTEL_TRACES_EXPORTER=otlp",
        )
    return found[name].load()()


def _otlp_exporter(environment: Mapping[str, str]) -> Any:
    protocol = _protocol(environment)
    if protocol == HTTP:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as OverHttp

        return OverHttp()
    if protocol == GRPC:
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as OverGrpc

        return OverGrpc()
    raise SettingsError(
        f"OTEL_EXPORTER_OTLP_PROTOCOL is {protocol!r}.",
        why=f"Spans are sent by {HTTP} or {GRPC}.",
        fix=f"OTEL_EXPORTER_OTLP_PROTOCOL={HTTP}",
    )


def _protocol(environment: Mapping[str, str]) -> str:
    of_traces = environment.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL")
    return of_traces or environment.get("OTEL_EXPORTER_OTLP_PROTOCOL") or HTTP


async def _ended(shut_down: Callable[[], None]) -> None:
    """Shut down in a thread that nobody waits for longer than is told: an exporter may try again for half a minute."""
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()

    def work() -> None:
        try:
            shut_down()
        finally:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                loop.call_soon_threadsafe(ended.set)

    threading.Thread(target=work, name="microflow-last-spans", daemon=True).start()
    try:
        async with asyncio.timeout(LEAVING):
            await ended.wait()
    except TimeoutError:
        logger.warning("the last spans were not taken within %g s, and are dropped", LEAVING)


# ── what exporters say ────────────────────────────────────────────────────────────────────────────────────────────


def _keep_exporters_quiet(clock: Clock, endpoint: str) -> None:
    seldom = _Seldom(clock, endpoint)
    for name in _OF_EXPORTERS:
        of_exporter = logging.getLogger(name)
        of_exporter.filters[:] = [each for each in of_exporter.filters if not isinstance(each, _Seldom)]
        of_exporter.addFilter(seldom)


class _Seldom(logging.Filter):
    """Lets one record a minute pass, in one line that says what it means."""

    def __init__(self, clock: Clock, endpoint: str) -> None:
        super().__init__()
        self._clock = clock
        self._endpoint = endpoint
        self._said_at: timedelta | None = None

    def filter(self, record: logging.LogRecord) -> bool:
        now = self._clock.monotonic()
        if self._said_at is not None and now - self._said_at < SELDOM:
            return False
        self._said_at = now
        said = record.getMessage()
        match = _REASON.search(said)
        reason = next(filter(None, match.groups()), said) if match else said.partition("\n")[0][:200]
        record.msg = "spans do not reach %s (%s): they are dropped, and nothing waits for them"
        record.args = (self._endpoint, reason.strip().lower() if match else reason)
        record.exc_info = None
        record.levelno, record.levelname = logging.WARNING, "WARNING"
        return True
