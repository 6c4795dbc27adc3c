"""`microflow handlers`: which handlers a service has, and what is to be done when one was renamed or removed."""

from __future__ import annotations

import click

from microflow.cli.look import Look, look_options, pass_look
from microflow.cli.options import database_option, log_option

SERVICE_HELP = "The service. Without it, or a TARGET: those with a database here."


@click.group()
def handlers() -> None:
    """List the handlers of services, and say what became of one that events wait for."""


@handlers.command("list")
@click.argument("target", required=False)
@click.option("--service", metavar="NAME", help=SERVICE_HELP)
@database_option
@look_options
@pass_look
def list_handlers(look: Look, target: str | None, service: str | None, database: str | None) -> int:
    """List handlers with what triggers them, since when, what waits for them, and how many processes have them."""
    from microflow.cli.handler_views import list_all

    return list_all(target, service, database=database, look=look)


@handlers.command()
@click.argument("name")
@click.argument("target", required=False)
@click.option("--service", metavar="NAME", help=SERVICE_HELP)
@click.option("--yes", is_flag=True, help="Do it. Without it, only what would be done is shown.")
@database_option
@log_option
@look_options
@pass_look
def retire(
    look: Look, name: str, target: str | None, service: str | None, yes: bool, database: str | None, kafka: str | None
) -> int:
    """Say that a handler was removed for good. What waits for it becomes dead letters, which can be given to another
    one by renaming. They are copied to the topic of the service's dead letters, if the log has one.

    Nothing is done without --yes, and nothing while a process has the handler.
    """
    from microflow.cli.handler_views import retire_one

    return retire_one(name, target, service, flags={"database": database, "kafka": kafka}, yes=yes, look=look)


@handlers.command()
@click.argument("old")
@click.argument("new")
@click.argument("target", required=False)
@click.option("--service", metavar="NAME", help=SERVICE_HELP)
@database_option
@look_options
@pass_look
def rename(look: Look, old: str, new: str, target: str | None, service: str | None, database: str | None) -> int:
    """Say that a handler has another name now: it goes on with its retries and repeats nothing.

    Nothing is done while a process has the handler under its old name.
    """
    from microflow.cli.handler_views import rename_one

    return rename_one(old, new, target, service, database=database, look=look)
