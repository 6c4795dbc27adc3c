"""`microflow dead-letters`: the events that were given up, and their way back."""

from __future__ import annotations

import click

from microflow.cli.look import Look, look_options, pass_look
from microflow.cli.options import database_option

SERVICE_HELP = "The service. Without it, or a TARGET: those with a database here."


@click.group("dead-letters")
def dead_letters() -> None:
    """List, show and redrive events that were given up."""


@dead_letters.command("list")
@click.argument("target", required=False)
@click.option("--service", metavar="NAME", help=SERVICE_HELP)
@click.option("--handler", metavar="NAME", help="Those of one handler.")
@click.option("--each", is_flag=True, help="One line for each, however many there are.")
@click.option("--done", is_flag=True, help="Also those that were redriven and have succeeded.")
@database_option
@look_options
@pass_look
def list_letters(
    look: Look,
    target: str | None,
    service: str | None,
    handler: str | None,
    each: bool,
    done: bool,
    database: str | None,
) -> int:
    """List the dead letters of a service; more than 20 are grouped by handler, type and error."""
    from microflow.cli.dead_letter_views import list_all

    return list_all(target, service, database=database, handler=handler, each=each, done=done, look=look)


@dead_letters.command()
@click.argument("identifier", metavar="ID", type=int)
@click.argument("target", required=False)
@click.option("--service", metavar="NAME", help=SERVICE_HELP)
@database_option
@look_options
@pass_look
def show(look: Look, identifier: int, target: str | None, service: str | None, database: str | None) -> int:
    """Show a dead letter with its headers, its value, its error and where it was raised."""
    from microflow.cli.dead_letter_views import show_one

    return show_one(identifier, target, service, database=database, look=look)


@dead_letters.command()
@click.argument("words", nargs=-1, metavar="[ID…] [TARGET]")
@click.option("--all", "all_letters", is_flag=True, help="All that are dead.")
@click.option("--handler", metavar="NAME", help="With --all: those of one handler.")
@click.option("--service", metavar="NAME", help=SERVICE_HELP)
@click.option("--yes", is_flag=True, help="Do it. Without it, only what would be done is shown.")
@database_option
@look_options
@pass_look
def redrive(
    look: Look,
    words: tuple[str, ...],
    all_letters: bool,
    handler: str | None,
    service: str | None,
    yes: bool,
    database: str | None,
) -> int:
    """Give dead letters back to the handler that failed, behind whatever waits of their key.

    Nothing is done without --yes. A running service begins with them at once.
    """
    from microflow.cli.dead_letter_redrive import redrive_letters

    identifiers = [int(word) for word in words if word.isdecimal()]
    targets = [word for word in words if not word.isdecimal()]
    if len(targets) > 1:
        raise click.UsageError(f"One target at a time, not {' and '.join(targets)}.")
    if bool(identifiers) == all_letters:
        raise click.UsageError("Say which: ids as `microflow dead-letters list` shows them, or --all.")
    if handler is not None and not all_letters:
        raise click.UsageError("--handler goes with --all; an id says its handler itself.")
    target = targets[0] if targets else None
    return redrive_letters(
        identifiers, target, service, database=database, all_letters=all_letters, handler=handler, yes=yes, look=look
    )
