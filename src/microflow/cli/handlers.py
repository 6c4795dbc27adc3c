"""`microflow handlers`: which handlers a service has, and what is to be done when one was renamed, removed or added."""

from __future__ import annotations

import click

from microflow.cli.look import Look, look_options, pass_look
from microflow.cli.options import database_option, log_option

SERVICE_HELP = "The service. Without it, or a TARGET: those with a database here."


@click.group()
def handlers() -> None:
    """List the handlers of services, say what became of one that is gone, and give a new one what was before it."""


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
@click.argument("name")
@click.argument("target", required=False)
@click.option("--service", metavar="NAME", help=SERVICE_HELP)
@click.option("--since", metavar="WHEN", help="Only what is not older: 2026-01-01, 2026-01-01T12:00Z, or 3d.")
@click.option("--out-of-order", is_flag=True, help="Although newer events of a key may be handled before older ones.")
@click.option("--yes", is_flag=True, help="Do it. Without it, only what would be read is shown.")
@database_option
@log_option
@look_options
@pass_look
def backfill(
    look: Look,
    name: str,
    target: str | None,
    service: str | None,
    since: str | None,
    out_of_order: bool,
    yes: bool,
    database: str | None,
    kafka: str | None,
) -> int:
    """Give a handler what its topics held before it began to read them.

    What it has handled already is left out. A running service begins with the rest at once, any other when it is
    started. Nothing is done without --yes.
    """
    from microflow.cli.backfilling import Order, backfill_handler

    order = Order(name, since=since, out_of_order=out_of_order, yes=yes)
    return backfill_handler(order, target, service, flags={"database": database, "kafka": kafka}, look=look)


@handlers.command()
@click.argument("old")
@click.argument("new")
@click.argument("target", required=False)
@click.option("--service", metavar="NAME", help=SERVICE_HELP)
@click.option("--yes", is_flag=True, help="Do it. Without it, only what would be done is shown.")
@database_option
@look_options
@pass_look
def rename(
    look: Look, old: str, new: str, target: str | None, service: str | None, yes: bool, database: str | None
) -> int:
    """Say that a handler has another name now: it goes on with its retries and repeats nothing.

    Nothing is done without --yes, and nothing while a process has the handler under its old name.
    """
    from microflow.cli.handler_views import rename_one

    return rename_one(old, new, target, service, database=database, yes=yes, look=look)
