"""Our names are the standard's: compared with the package that has them."""

from __future__ import annotations

from opentelemetry.semconv._incubating.attributes import (
    cloudevents_attributes,
    code_attributes,
    error_attributes,
    exception_attributes,
    messaging_attributes,
    server_attributes,
)
from opentelemetry.semconv.schemas import Schemas

from microflow import semantic_conventions

MODULES = (
    cloudevents_attributes,
    code_attributes,
    error_attributes,
    exception_attributes,
    messaging_attributes,
    server_attributes,
)
STANDARD = {name: value for module in MODULES for name, value in vars(module).items() if name.isupper()}
OURS = {name: value for name, value in vars(semantic_conventions).items() if name.isupper()}


def test_every_name_that_is_not_our_own_is_the_standards() -> None:
    ours = {name: value for name, value in OURS.items() if not name.startswith(("MICROFLOW_", "SCHEMA_"))}

    assert len(ours) > 20
    assert ours == {name: STANDARD.get(name) for name in ours}


def test_names_of_our_own_say_so() -> None:
    own = {name: value for name, value in OURS.items() if name.startswith("MICROFLOW_")}

    assert all(value == f"microflow.{name.removeprefix('MICROFLOW_').lower()}" for name, value in own.items())


def test_the_schema_is_one_that_is_published() -> None:
    assert semantic_conventions.SCHEMA_URL in {schema.value for schema in Schemas}
