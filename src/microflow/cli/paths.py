"""Places as a person reads them: paths from where they stand, logs and databases without their URLs."""

from __future__ import annotations

import os
from pathlib import Path

from microflow.addresses import masked


def shortened(text: str) -> str:
    """A text in which paths below the working directory begin there."""
    here = f"{Path.cwd()}{os.sep}"
    return text if here == os.sep else text.replace(here, "")


def log_in_words(address: str) -> str:
    """A log's address: `local log .microflow/log.db`."""
    if address.startswith("local:"):
        return f"local log {shortened(address.removeprefix('local:'))}"
    return "log in memory" if address == "memory:" else f"Kafka {address}"


def database_in_words(url: str) -> str:
    """A database's URL: `SQLite .microflow/payments.db`."""
    if url == "memory:":
        return "SQLite in memory"
    if url.startswith("sqlite:///"):
        return f"SQLite {shortened(url.removeprefix('sqlite:///'))}"
    return masked(url)
