"""How much is shown, and in which form: `-q`, `-v` and `--json`, which every verb takes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import click

Command = TypeVar("Command", bound=Callable[..., Any])


@dataclass(slots=True)
class Look:
    """Filled while the command line is read, so that even its errors are told in the form that was asked for."""

    quiet: bool = False
    verbose: bool = False
    json: bool = False
    lost: OSError | None = None
    """Why stdout could not be written, if that is so: the command then stops and fails."""

    @property
    def log_level(self) -> str | None:
        """The level that was asked for, None if none was."""
        return "debug" if self.verbose else "warning" if self.quiet else None

    @property
    def typed(self) -> list[str]:
        """The options that give another process the same look."""
        flags = {"--quiet": self.quiet, "--verbose": self.verbose, "--json": self.json}
        return [flag for flag, given in flags.items() if given]


def look_options(function: Command) -> Command:
    """Add `-q`, `-v` and `--json` to a verb."""
    for option in (
        click.option("--json", is_flag=True, expose_value=False, callback=_note, help="JSON lines, for programs."),
        click.option("-v", "--verbose", is_flag=True, expose_value=False, callback=_note, help="Show everything."),
        click.option("-q", "--quiet", is_flag=True, expose_value=False, callback=_note, help="Show trouble only."),
    ):
        function = option(function)
    return function


pass_look = click.make_pass_decorator(Look, ensure=True)


def _note(context: click.Context, parameter: click.Parameter, value: bool) -> None:
    if value and parameter.name is not None:
        setattr(context.ensure_object(Look), parameter.name, True)
