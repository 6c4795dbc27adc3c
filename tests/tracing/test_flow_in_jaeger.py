"""Services in processes of their own, and what Jaeger has of a flow through them."""

from __future__ import annotations

import uuid
from pathlib import Path

import pytest

from servers.jaeger import Endpoints
from tests.cli.projects import Project
from tests.tracing.jaeger import CONVERSATION, Traces, traces_of

SHOP = """
from datetime import timedelta
from microflow import Context, Event, Retry, Service, on

class Placed(Event, key="order"):
    order: str

class Accepted(Event, key="order"):
    order: str

@on("Placed", retry=Retry(attempts=2, first_delay=timedelta(milliseconds=10)))
async def accept(placed: Placed, context: Context) -> Accepted:
    if context.attempt == 1:
        raise ValueError("the till is stuck")
    return Accepted(order=placed.order)

service = Service("{name}")
"""
SHIPPING = """
from microflow import Event, Service, on

class Accepted(Event, key="order"):
    order: str

@on("Accepted")
def ship(accepted: Accepted) -> None: ...

service = Service("{name}")
"""


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


def test_a_flow_through_two_processes_is_one_trace_that_is_found_by_its_flow(
    project: Project, jaeger: Endpoints
) -> None:
    """From the shell that emits its first event on, with a retry in between; no line of tracing in the services."""
    unique = uuid.uuid4().hex[:8]
    shop, shipping = f"shop-{unique}", f"shipping-{unique}"
    project.write("shop.py", SHOP.replace("{name}", shop))
    project.write("shipping.py", SHIPPING.replace("{name}", shipping))
    environment = {"OTEL_EXPORTER_OTLP_ENDPOINT": jaeger.otlp_http, "OTEL_BSP_SCHEDULE_DELAY": "100"}
    services = [project.start("run", name, environment=environment) for name in ("shop.py", "shipping.py")]
    try:
        for each in services:
            each.until_ready()
        emitted = project.run(
            "emit", "Placed", "order=o-1", "--flow", f"o-1-{unique}", "--app", "shop.py", environment=environment
        )
        assert emitted.returncode == 0, emitted.stderr
        found = traces_of(
            jaeger.query, f"o-1-{unique}", services=[shop, shipping], until=lambda traces: len(traces.spans) == 7
        )
    finally:
        for each in services:
            each.stop()

    create, attempt = "microflow-cli: create Placed", f"{shop}: process Placed"
    accepted = f"{create} > {attempt} > {shop}: create Accepted"
    assert found.tree() == [
        create,
        f"{create} > microflow-cli: send Placed",
        f"{create} > {attempt}",
        f"{create} > {attempt}",
        accepted,
        f"{accepted} > {shipping}: process Accepted",
        f"{accepted} > {shop}: send Accepted",
    ]
    assert len(found.ids()) == 1
    assert {span.attributes[CONVERSATION] for span in found.spans} == {f"o-1-{unique}"}
    failed, done = found.named("process Placed")
    assert (failed.kind, failed.error, failed.events) == ("consumer", "ValueError: the till is stuck", ["exception"])
    assert (done.error, done.events, done.attributes["microflow.attempt"]) == ("", [], 2)
    assert in_order(found)


def in_order(found: Traces) -> bool:
    """Whether every span begins after what it hangs under."""
    began = {span.id: span.began for span in found.spans}
    return all(span.began >= began[span.parent] for span in found.spans if span.parent)
