"""What every peer is given, and the one thing that it says: when it began.

When it ended is not its to say: whoever measures looks at the log, or at the tables.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import sys
import time
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any


@dataclass(slots=True)
class Peer:
    """`kafka` is host:port, `database` a URL of PostgreSQL; events go from the topic `source` to `target`."""

    kafka: str
    database: str
    source: str
    target: str
    events: int
    variant: str
    group: str = "peer"
    service: str = "first"
    instants: str = ""
    has_begun: bool = False

    def begin(self) -> None:
        """The first event is in the handler's hands."""
        if not self.has_begun:
            self.has_begun = True
            say(began=time.monotonic())


def say(**what: object) -> None:
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


def read_arguments() -> Peer:
    parser = argparse.ArgumentParser()
    for name in ("kafka", "database", "group", "source", "target", "variant"):
        parser.add_argument(f"--{name}", default="")
    parser.add_argument("--events", type=int, default=0)
    parser.add_argument("--service", default="first")
    parser.add_argument("--instants", default="", metavar="FILE")
    return Peer(**vars(parser.parse_args()))


def run(work: Coroutine[Any, Any, None]) -> None:
    """Run on uvloop where it is installed, as every peer may."""
    with contextlib.suppress(ImportError):
        import uvloop

        uvloop.run(work)
        return
    asyncio.run(work)
