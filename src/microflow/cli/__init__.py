"""The command: what is typed, what is shown, and how it ends."""

from microflow.cli.command import main

__all__ = ["main"]
