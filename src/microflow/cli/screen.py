"""What is shown while services run: one line at a time on stdout, as text for a person or as JSON for a program."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any, TextIO

import click

from microflow.cli.colours import wants_colour
from microflow.cli.look import Look


class Screen:
    """Lines on a stream, each flushed at once. A reader that has gone (`| head`) is told to `gone`, once."""

    def __init__(self, look: Look, *, log_format: str = "auto", stream: TextIO | None = None) -> None:
        self._stream = stream if stream is not None else sys.stdout
        self._look = look
        self.quiet = look.quiet
        self.verbose = look.verbose
        self.json = look.json or log_format == "json" or (log_format == "auto" and not self._stream.isatty())
        self.colour = not self.json and wants_colour(self._stream)
        self.gone: Callable[[], None] = _do_nothing
        self._is_gone = False
        # What users' events and errors hold must not keep their line from being printed.
        if hasattr(self._stream, "reconfigure"):
            self._stream.reconfigure(errors="backslashreplace")

    def line(self, text: str) -> None:
        """Show one line."""
        if self._is_gone:
            return
        try:
            self._stream.write(f"{text}\n")
            self._stream.flush()
        except OSError as error:
            self._is_gone = True
            if not isinstance(error, BrokenPipeError):
                self._look.lost = error
            os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())
            self.gone()

    def style(self, text: str, **how: Any) -> str:
        """A text in colour, where there are colours."""
        return click.style(text, **how) if self.colour else text


def _do_nothing() -> None:
    pass
