"""Progress: how far something long is, as a bar on a terminal and elsewhere as a line for every tenth."""

from __future__ import annotations

import sys

import click

from microflow.cli.report_lines import json_line
from microflow.cli.screen import Screen

BIG = 1000
"""Of fewer nothing is shown: they are done before anybody wonders."""


class Progress:
    """How much of `total` is done. `label` says for a person what is being done, `counted` for a program what is."""

    def __init__(self, screen: Screen, total: int, *, label: str, counted: str) -> None:
        self._screen = screen
        self._total = total
        self._label = label
        self._counted = counted
        self._done = 0
        self._shown = total >= BIG and not screen.quiet
        bar = self._shown and not screen.json and sys.stdout.isatty()
        self._bar = click.progressbar(length=total, label=label) if bar else None

    def __enter__(self) -> Progress:
        if self._bar is not None:
            self._bar.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            self._bar.render_finish()

    def advance(self, count: int) -> None:
        """So many more are done."""
        before, self._done = self._done, self._done + count
        if self._bar is not None:
            self._bar.update(count)
        elif self._shown and self._done * 10 // self._total > before * 10 // self._total:
            share = self._done * 100 // self._total
            if self._screen.json:
                self._screen.line(json_line({"message": "progress", self._counted: self._done, "of": self._total}))
            else:
                self._screen.line(f"{self._label} {self._done}/{self._total} · {share} %")
