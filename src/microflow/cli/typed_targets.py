"""Targets as they were typed: what would have been right is told with the verb, and the words before the target."""

from __future__ import annotations

import shlex
from collections.abc import Iterator

import click

from microflow.errors import TargetError
from microflow.targets import Target, load_target

ANY_VERB = "microflow run "


def load_typed(text: str) -> Target:
    """`load_target`, with a way out that can be pasted where the target was typed."""
    try:
        return load_target(text)
    except TargetError as error:
        context = click.get_current_context(silent=True)
        if context is not None and error.fix is not None:
            error.fix = error.fix.replace(ANY_VERB, " ".join([*_before(text, context), ""]))
        raise


def _before(text: str, context: click.Context) -> Iterator[str]:
    yield context.command_path
    for parameter in context.command.params:
        if isinstance(parameter, click.Argument) and parameter.name is not None:
            given = context.params.get(parameter.name)
            for word in given if isinstance(given, tuple) else (given,):
                if word is None or word == text:
                    return
                yield shlex.quote(str(word))
