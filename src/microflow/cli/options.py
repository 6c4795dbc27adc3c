"""Options that several verbs take, and the settings they add up to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

Command = TypeVar("Command", bound=Callable[..., Any])

LOG = "The log: HOST:PORT of Kafka, local:PATH or memory:"
DATABASE = "The database: postgresql://… or sqlite:///PATH"


def log_option(function: Command) -> Command:
    """Add `--kafka ADDRESS`, also called `--log`."""
    return click.option("--kafka", "--log", "kafka", metavar="ADDRESS", help=LOG)(function)


def database_option(function: Command) -> Command:
    """Add `--database URL`."""
    return click.option("--database", metavar="URL", help=DATABASE)(function)
