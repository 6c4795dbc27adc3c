"""`microflow run`: services in this process until they are told to stop."""

from __future__ import annotations

import click

from microflow.cli.look import Look, look_options, pass_look
from microflow.cli.options import database_option, log_option


@click.command()
@click.argument("targets", nargs=-1, required=True, metavar="TARGET…")
@log_option
@database_option
@click.option("--concurrency", metavar="N", help="Handlers that may run at once, for each service.  [default: 100]")
@click.option("--workers", metavar="N", help="Processes that share the work.  [default: 1]")
@click.option("--wait", metavar="SPAN", help="How long to wait for a log or database not yet up.  [default: 30s]")
@click.option("--drain", metavar="SPAN", help="The longest a stop may take, for example 25s.  [default: 25s]")
@click.option("--migrate", metavar="auto|never", help="Make and change tables at the start, or never.  [default: auto]")
@click.option("--health", metavar="[HOST]:PORT", help="Answer /live and /ready there, over HTTP.")
@click.option("--until-end-of-input", is_flag=True, hidden=True)  # a supervisor that dies must not leave us behind
@look_options
@pass_look
def run(
    look: Look,
    targets: tuple[str, ...],
    kafka: str | None,
    database: str | None,
    concurrency: str | None,
    workers: str | None,
    wait: str | None,
    drain: str | None,
    migrate: str | None,
    health: str | None,
    until_end_of_input: bool,
) -> int:
    """Run services until they are told to stop.

    A TARGET is a file (payments.py), a module (shop.payments) or a Service in one (shop.payments:service). Several
    targets share this process; each has its own database. Ctrl-C or SIGTERM lets what runs finish; a second one ends
    at once. When stdout is no terminal, every line is JSON.
    """
    from microflow.cli.serving import serve

    flags = {
        "kafka": kafka,
        "database": database,
        "concurrency": concurrency,
        "workers": workers,
        "wait": wait,
        "drain": drain,
        "migrate": migrate,
        "health": health,
    }
    return serve(targets, flags=flags, look=look, supervised=until_end_of_input)
