"""`python -m servers run -- COMMAND` gives a command real servers; `prepare` downloads and builds what they need.

SIGTERM and SIGHUP end the command with all that it started, and then the servers; nothing of them is left.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from types import FrameType

from servers.docker import engine
from servers.downloads import NotInstalled
from servers.finding import KINDS, Missing, a_server, what_was_tried
from servers.jaeger import Endpoints
from servers.leash import ended_with_this_process
from servers.postgres import fresh_database
from servers.processes import ServerFailed, end_with_descendants

UNASKED = ("kafka", "postgres")
ENDINGS = (signal.SIGTERM, signal.SIGHUP)
DRAINS_WITHIN = 30.0
"""Seconds that a command has after such a signal: a service takes up to 25 of them by default."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m servers", description=__doc__)
    verbs = parser.add_subparsers(required=True, dest="verb")
    run = verbs.add_parser("run", help="run a command with MICROFLOW_KAFKA and MICROFLOW_DATABASE set, then stop them")
    run.add_argument("--only", choices=sorted(KINDS), action="append", help="start this kind only")
    run.add_argument(
        "--with", dest="also", choices=sorted(KINDS), action="append", default=[], help="start this kind as well"
    )
    run.add_argument("command", nargs="+", metavar="COMMAND")
    verbs.add_parser("prepare", help="download and build what local servers need, unless they come from elsewhere")
    arguments = parser.parse_args()
    try:
        if arguments.verb == "prepare":
            return prepare()
        return run_with(arguments.command, kinds=[*(arguments.only or UNASKED), *arguments.also])
    except (Missing, ServerFailed) as problem:
        print(problem, file=sys.stderr)
        return 3


def prepare() -> int:
    """Download or build in the cache what this machine needs to offer every server."""
    for kind in KINDS.values():
        if os.environ.get(kind.variable):
            print(f"{kind.title}: {kind.variable} is set")
        elif (address := engine()) is not None:
            print(f"{kind.title}: a Docker engine answers at {address}")
        else:
            try:
                kind.install()
            except NotInstalled as missing:
                raise Missing(what_was_tried(kind, str(missing))) from None
            print(f"{kind.title}: ready to be started here")
    return 0


def run_with(command: Sequence[str], *, kinds: Sequence[str]) -> int:
    """Run a command beside servers that are its own, and return its exit code."""
    with _ended_by_signals(), ExitStack() as stack:
        environment = dict(os.environ)
        for name in dict.fromkeys(kinds):
            found = stack.enter_context(a_server(KINDS[name], install=True))
            print(f"{KINDS[name].title}: {found.address.rpartition('@')[2]} ({found.origin})", file=sys.stderr)
            environment.update(settings(name, found.address, stack))
        process = subprocess.Popen(command, env=environment, preexec_fn=ended_with_this_process(signal.SIGTERM))
        while True:
            try:
                return process.wait()
            except KeyboardInterrupt:
                continue  # the terminal has told the command as well, and it may want to drain
            except SystemExit:
                end_with_descendants(process, seconds=DRAINS_WITHIN)
                raise


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Leave the block by SystemExit at the first signal that asks for the end; what it cleans up is not disturbed."""

    def leave(number: int, _frame: FrameType | None) -> None:
        for each in heard:
            signal.signal(each, signal.SIG_IGN)
        # A shell's convention: the exit code says which signal it was.
        sys.exit(128 + number)

    # Under nohup, SIGHUP is to be ignored.
    heard = {each: signal.getsignal(each) for each in ENDINGS if signal.getsignal(each) is not signal.SIG_IGN}
    for each in heard:
        signal.signal(each, leave)
    try:
        yield
    finally:
        for each, before in heard.items():
            signal.signal(each, before)


def settings(kind: str, address: str, stack: ExitStack) -> dict[str, str]:
    """What microflow and OpenTelemetry read in the environment to use that server; JAEGER_URL is its UI."""
    if kind == "kafka":
        return {"MICROFLOW_KAFKA": address}
    if kind == "jaeger":
        endpoints = Endpoints.of(address)
        return {
            "OTEL_EXPORTER_OTLP_ENDPOINT": endpoints.otlp_http,
            "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
            "JAEGER_URL": endpoints.query,
        }
    return {"MICROFLOW_DATABASE": stack.enter_context(fresh_database(address))}


if __name__ == "__main__":
    sys.exit(main())
