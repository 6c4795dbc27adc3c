"""Services: whether their files load, and what they are made of."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

from microflow.cli.console_lines import in_words
from microflow.cli.probes.findings import Finding, ok, problem_of
from microflow.cli.typed_targets import load_typed
from microflow.errors import MicroflowError
from microflow.service import Definition, build
from microflow.settings import Settings


@dataclass(frozen=True, slots=True)
class Looked:
    """What loading targets came to: the services that could be built, by which targets, and a finding for each."""

    definitions: tuple[Definition, ...]
    targets: tuple[str, ...]
    findings: tuple[Finding, ...]


def load_services(targets: Sequence[str], settings: Settings) -> Looked:
    """Load and build the services of targets, each by itself: one that cannot be hides no other one."""
    definitions, loaded, findings = [], [], []
    for text in targets:
        began = time.monotonic()
        try:
            definition = build(load_typed(text).service, topics=settings.topics)
        except MicroflowError as error:
            findings.append(problem_of(error))
            continue
        definitions.append(definition)
        loaded.append(text)
        took = in_words(timedelta(seconds=time.monotonic() - began))
        handlers, emitted = len(definition.handlers), len(definition.emitted)
        findings.append(
            ok(
                f"{definition.name}: {text} loads in {took}",
                f"{handlers} handler{'s' if handlers != 1 else ''}",
                f"emits {emitted} type{'s' if emitted != 1 else ''}",
            )
        )
    return Looked(tuple(definitions), tuple(loaded), tuple(findings))
