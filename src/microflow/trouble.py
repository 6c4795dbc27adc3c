"""Trouble that lasts: it is told once when it begins and once when it is over, however often it is met in between."""

from __future__ import annotations

import logging


class Trouble:
    """One thing that may go wrong again and again, such as a database that is away."""

    def __init__(self, logger: logging.Logger) -> None:
        self._logger = logger
        self._told: str | None = None

    @property
    def is_told(self) -> bool:
        """Whether it has begun and is not over."""
        return self._told is not None

    def met(self, text: str, *args: object) -> None:
        """It is there: told unless the same `text` was the last that was told of it."""
        if text != self._told:
            self._told = text
            self._logger.warning(text, *args)

    def is_over(self, text: str) -> None:
        """It is not there: told if it was told that it is."""
        if self._told is not None:
            self._told = None
            self._logger.warning(text)
