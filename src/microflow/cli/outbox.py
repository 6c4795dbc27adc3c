"""`microflow outbox`: what waits to be published, why, and the way out for what never will be."""

from __future__ import annotations

from pathlib import Path

import click

from microflow.cli.look import Look, look_options, pass_look
from microflow.cli.options import database_option, log_option

SERVICE_HELP = "The service whose database it is, unless a TARGET says it."


@click.group()
def outbox() -> None:
    """Show what waits to be published, and give up what never can be."""


@outbox.command()
@click.argument("target", required=False)
@click.option("--service", metavar="NAME", help=SERVICE_HELP)
@database_option
@log_option
@look_options
@pass_look
def status(look: Look, target: str | None, service: str | None, database: str | None, kafka: str | None) -> int:
    """Show how much waits for each topic, since when, and what keeps it.

    Exits with 1 if something waits for what will not come by itself: a topic that is missing, a record that is too
    large; with 3, after what waits, if the log cannot be asked.
    """
    from microflow.cli.outbox_views import show_status

    return show_status(target, service=service, database=database, kafka=kafka, look=look)


@outbox.command()
@click.argument("position", type=int)
@click.argument("target", required=False)
@click.option(
    "--save",
    metavar="FILE",
    type=click.Path(path_type=Path),
    default=Path("skipped-events.jsonl"),
    show_default=True,
    help="Where the event is kept, with all its bytes, as a line of JSON.",
)
@click.option("--service", metavar="NAME", help=SERVICE_HELP)
@click.option("--yes", is_flag=True, help="Do it. Without it, only what would be done is shown.")
@database_option
@look_options
@pass_look
def skip(
    look: Look, position: int, target: str | None, save: Path, service: str | None, yes: bool, database: str | None
) -> int:
    """Give up an event that the log will never take, so that the later ones of its key are published.

    POSITION is its number in the outbox, as `status` shows it. Nobody who reads the topic will ever see the event;
    it is kept in a file, and nothing is done without --yes.
    """
    from microflow.cli.outbox_skip import skip_row

    return skip_row(position, target, service=service, database=database, save=save, yes=yes, look=look)
