"""`python -m servers run -- COMMAND` gives a command real servers; `prepare` downloads what they need."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack

from servers import kafka, postgres
from servers.docker import engine
from servers.downloads import NotInstalled
from servers.finding import KINDS, Missing, a_server
from servers.postgres import fresh_database
from servers.processes import ServerFailed

LOCAL = {"kafka": kafka.require, "postgres": postgres.require}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m servers", description=__doc__)
    verbs = parser.add_subparsers(required=True, dest="verb")
    run = verbs.add_parser("run", help="run a command with MICROFLOW_KAFKA and MICROFLOW_DATABASE set, then stop them")
    run.add_argument("--only", choices=sorted(KINDS), action="append", help="start this kind only")
    run.add_argument("command", nargs="+", metavar="COMMAND")
    verbs.add_parser("prepare", help="download what local servers need, unless they come from elsewhere")
    arguments = parser.parse_args()
    try:
        if arguments.verb == "prepare":
            return prepare()
        return run_with(arguments.command, kinds=arguments.only or list(KINDS))
    except (Missing, NotInstalled, ServerFailed) as problem:
        print(problem, file=sys.stderr)
        return 3


def prepare() -> int:
    """Download into the cache what this machine needs to offer every server."""
    for kind in KINDS.values():
        if os.environ.get(kind.variable):
            print(f"{kind.title}: {kind.variable} is set")
        elif (address := engine()) is not None:
            print(f"{kind.title}: a Docker engine answers at {address}")
        else:
            LOCAL[kind.name]()
            print(f"{kind.title}: ready to be started here")
    return 0


def run_with(command: Sequence[str], *, kinds: Sequence[str]) -> int:
    """Run a command beside servers that are its own, and return its exit code."""
    with ExitStack() as stack:
        environment = dict(os.environ)
        for name in kinds:
            found = stack.enter_context(a_server(KINDS[name]))
            print(f"{KINDS[name].title}: {found.address.rpartition('@')[2]} ({found.origin})", file=sys.stderr)
            environment.update(settings(name, found.address, stack))
        process = subprocess.Popen(command, env=environment)
        while True:
            try:
                return process.wait()
            except KeyboardInterrupt:
                continue  # the terminal has told the command as well, and it may want to drain


def settings(kind: str, address: str, stack: ExitStack) -> dict[str, str]:
    """What microflow reads in the environment to use that server."""
    if kind == "kafka":
        return {"MICROFLOW_KAFKA": address}
    return {"MICROFLOW_DATABASE": stack.enter_context(fresh_database(address))}


if __name__ == "__main__":
    sys.exit(main())
