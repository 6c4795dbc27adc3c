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
@click.option("--drain", metavar="SPAN", help="The longest a stop may take, for example 25s.  [default: 25s]")
@click.option(
    "--migrate",
    type=click.Choice(["auto", "never"]),
    default="auto",
    help="Run the services' own migrations when they start, or never.  [default: auto]",
)
@click.option("--until-end-of-input", is_flag=True, hidden=True)  # a supervisor that dies must not leave us behind
@look_options
@pass_look
def run(
    look: Look,
    targets: tuple[str, ...],
    kafka: str | None,
    database: str | None,
    concurrency: str | None,
    drain: str | None,
    migrate: str,
    until_end_of_input: bool,
) -> int:
    """Run services until they are told to stop.

    A TARGET is a file (payments.py), a module (shop.payments) or a Service in one (shop.payments:service). Several
    targets share this process; each has its own database. Ctrl-C or SIGTERM lets what runs finish; a second one ends
    at once. When stdout is no terminal, every line is JSON.
    """
    from microflow.cli.serving import serve

    flags = {"kafka": kafka, "database": database, "concurrency": concurrency, "drain": drain}
    return serve(targets, flags=flags, look=look, migrate=migrate == "auto", supervised=until_end_of_input)
