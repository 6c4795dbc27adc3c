"""`microflow relay`: the outbox of a database, published by a process of its own."""

from __future__ import annotations

import click

from microflow.cli.look import Look, look_options, pass_look
from microflow.cli.options import database_option, log_option


@click.command()
@click.option("--service", metavar="NAME", help="The service whose database it is.")
@database_option
@log_option
@look_options
@pass_look
def relay(look: Look, service: str | None, database: str | None, kafka: str | None) -> int:
    """Publish what programs that are no service append to their outbox, until SIGTERM or Ctrl-C.

    A running service publishes the outbox of its own database; a program such as a web application, which uses
    microflow.Outbox on a database of its own, needs this. A database that does not exist yet is made.
    """
    from microflow.cli.relaying import relay_outbox

    return relay_outbox(service=service, database=database, kafka=kafka, look=look)
